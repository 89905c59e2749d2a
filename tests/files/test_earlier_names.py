import pytest

from erasure_lightning.files.earlier_names import renamed_config, renamed_option


def test_a_run_s_config_has_the_names_of_now():
    earlier = {"data": {"size": 64, "draw_size": 4, "pictures": 2}, "model": {"size": 3}, "seed": 1}
    now = {"data": {"image_size": 64, "image_batch_size": 4, "images": 2}, "model": {"size": 3}}
    assert renamed_config(earlier) == now | {"seed": 1}
    assert renamed_config(now) == now


@pytest.mark.parametrize(
    ("option", "now"),
    [
        ("--data.draw_size", "--data.image_batch_size"),
        ("draw_size", "image_batch_size"),
        ("--data.steps", "--data.steps"),
        ("--out", "--out"),
    ],
)
def test_an_option_has_the_name_of_now(option, now):
    assert renamed_option(option) == now
