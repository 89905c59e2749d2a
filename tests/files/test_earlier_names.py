import pytest

from erasure_lightning.files.earlier_names import renamed_config, renamed_metadata, renamed_option


def test_a_run_s_config_has_the_names_of_now():
    earlier = {
        "model": {"class_path": "UCE", "init_args": {"base": "bfloat16", "size": 3}},
        "data": {"size": 64, "draw_size": 4, "pictures": 2, "rounds": 8},
        "trainer": {
            "callbacks": [
                {"class_path": "C", "init_args": {"nearness": 1, "budget": 2}},
                {"class_path": "erasure_lightning.M.RetentionMonitor", "init_args": {"budget": 1}},
                "Measure",
            ]
        },
        "save_every": 1,
    }
    now = {
        "model": {"class_path": "UCE", "init_args": {"base_dtype": "bfloat16", "size": 3}},
        "data": {"image_size": 64, "image_batch_size": 4, "images": 2, "steps_per_concept": 8},
        "trainer": {
            "callbacks": [
                {"class_path": "C", "init_args": {"retained_share": 1, "budget": 2}},
                {
                    "class_path": "erasure_lightning.M.RetentionMonitor",
                    "init_args": {"min_retained": 1},
                },
                "Measure",
            ]
        },
        "save_every": 1,
    }
    assert renamed_config(earlier) == now
    assert renamed_config(now) == now


@pytest.mark.parametrize(
    ("method", "earlier", "now"),
    [
        ("m.sage.SAGE", "edit", "train"),
        ("m.Other", "edit", "edit"),
        ("MACE", "preserve", "preserve_scale"),
        ("UCE", "preserve", "preserve"),
        ("Receler", "guidance", "eta"),
        ("ESD", "guidance", "guidance"),
    ],
)
def test_arguments_of_one_method_are_no_other_s(method, earlier, now):
    metadata = {"method": method, "arguments": {earlier: 1}}
    assert renamed_metadata(metadata)["arguments"] == {now: 1}


@pytest.mark.parametrize(
    ("option", "now"),
    [
        ("--data.draw_size", "--data.image_batch_size"),
        ("draw_size", "image_batch_size"),
        ("base", "base_dtype"),
        ("--model.edit", "--model.train"),
        ("--data.steps", "--data.steps"),
        ("--out", "--out"),
    ],
)
def test_an_option_has_the_name_of_now(option, now):
    assert renamed_option(option) == now
