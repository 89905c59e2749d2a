import copy
import json

import pytest
import torch
from tiny_scorers import KnownScorer, save_scorer
from trivial import Redirection, quiet_trainer

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.measure import EditMetrics, Measure, result_table
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.data.image_plan import ImageRequest
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import Result

CAT = Concept("cat", "dog", domain=["kitten"])


def module():
    return Redirection(concepts=[CAT], backbone=TinyBackbone())


def run(folder, callback, module, fn="test", fit=False, image_batch_size=32, others=3, **kwargs):
    trainer = quiet_trainer(
        max_steps=1,
        default_root_dir=folder,
        callbacks=[callback],
        **kwargs,
    )
    images = {"seeds": 3, "steps": 2, "image_size": 16, "image_batch_size": image_batch_size}
    data = PromptData(others=others, neighbours=["bird"], **images)
    if fit:
        trainer.fit(module, data)
    getattr(trainer, fn)(module, data, verbose=False)
    return trainer


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder, callback and trainer of a measured edit."""
    folder = tmp_path_factory.mktemp("run")
    measure = Measure(str(save_scorer(folder / "scorer")))
    return folder, measure, run(folder, measure, module(), fit=True)


def test_metrics_are_stored_written_and_logged(measured):
    folder, measure, trainer = measured
    assert Result.load(folder / "metrics.json") == measure.result
    assert measure.result.protocol.sampler_settings["num_train_timesteps"] == 1000
    names = {group: set(metrics) for group, metrics in measure.result.estimates.items()}
    groups = ("efficacy", "generality", "neighbours", "specificity")
    assert names == {
        **{group: {"recognized", "image_text"} for group in groups},
        "structure": {"similarity", "distance"},
    }
    logged = {name for name in trainer.callback_metrics if name.startswith("measure/")}
    assert {
        "measure/efficacy_before",
        "measure/structure_distance",
        "measure/neighbours_image_text_after",
    } <= logged


@pytest.mark.parametrize(
    ("scorer", "data", "message"),
    [
        ("./nosuch", {}, "The scorer './nosuch' was not found"),
        (None, {"steps": 2000}, "needs from 1 to 1000 sampling steps; found 2000"),
        (None, {"image_size": 17}, "needs a size that is a multiple of 2 pixels; found 17"),
    ],
    ids=["scorer", "steps", "size"],
)
def test_what_could_not_be_measured_is_refused_before_training(tmp_path, scorer, data, message):
    trainer = quiet_trainer(max_steps=1, default_root_dir=tmp_path, callbacks=[Measure(scorer)])
    with pytest.raises(ErasureError, match=message):
        trainer.fit(module(), PromptData(**data))
    assert trainer.global_step == 0


def test_originals_are_a_folder(tmp_path):
    file = tmp_path / "originals"
    file.touch()
    with pytest.raises(ErasureError, match="needs a folder as originals; found the file"):
        PromptData(originals=str(file))


def test_the_protocol_of_a_run(measured):
    _, measure, _ = measured
    protocol = measure.result.protocol
    assert protocol.prompts["efficacy"] == ["a cat", "an image of a cat", "cat"]
    assert protocol.prompts["generality"] == ["a kitten"]
    assert (protocol.seeds, protocol.steps) == ([0, 1, 2], 2)
    assert (protocol.size, protocol.sampler) == (16, "DDIMScheduler")
    assert protocol.backbone_fingerprint == TinyBackbone().fingerprint()
    assert measure.result.estimates["efficacy"]["recognized"]["after"].images == 9


def test_the_protocol_has_the_trainer_s_precision(measured, tmp_path):
    plain, rounded = measured[1], Measure()
    run(tmp_path, rounded, module(), precision="bf16-mixed")
    precisions = [each.result.protocol.precision for each in (plain, rounded)]
    assert precisions == ["32-true", "bf16-mixed"]


def test_an_edit_moves_pixels_and_no_edit_moves_none(measured, tmp_path):
    _, measure, _ = measured
    assert measure.result.estimates["structure"]["distance"]["after"].mean > 0
    unedited = Measure(measure.scorer)
    run(tmp_path, unedited, module())
    structure = unedited.result.estimates["structure"]
    assert structure["distance"]["after"].mean == 0
    assert structure["similarity"]["after"].mean == pytest.approx(1, abs=1e-5)
    for group in ("efficacy", "specificity"):
        shares = unedited.result.estimates[group]["recognized"]
        assert shares["before"] == shares["after"]


def test_the_table_is_printed(tmp_path, capsys, measured):
    run(tmp_path, Measure(measured[1].scorer), module(), fn="validate")
    printed = capsys.readouterr().out
    groups = ("efficacy", "generality", "neighbours", "specificity", "structure")
    for words in (*groups, "2 seeds", "lower", "higher"):
        assert words in printed


def test_a_concept_that_the_original_does_not_show_is_named_in_the_table(measured):
    result = copy.deepcopy(measured[1].result)
    shares = result.estimates["efficacy"]["recognized"]
    shares["before"] = Estimate(0.1, 0.0, 0.2, 3, 9)
    assert result_table(result).caption.startswith("overall")
    assert "measure erasure" not in result_table(result).caption
    shares["before"] = Estimate(0.0, 0.0, 0.0, 3, 9)
    assert "they do not measure erasure" in result_table(result).caption


def test_without_a_scorer_pixels_alone_are_compared(tmp_path, capsys):
    measure = Measure()
    run(tmp_path, measure, module())
    assert set(measure.result.estimates) == {"structure"}
    assert measure.result.protocol.scorer_fingerprint == ""
    assert result_table(measure.result).caption.startswith("Measure needs a scorer")
    assert "Measure needs a scorer to recognise things" in " ".join(capsys.readouterr().out.split())


def test_images_of_the_right_label_count_and_others_do_not():
    known = KnownScorer()
    requests = [
        ImageRequest(prompt, seed, group, "", answer, 2, 1.0)
        for group, prompt, answer in (
            ("efficacy", "a cat", ""),
            ("generality", "a kitten", ""),
            ("specificity", "a dog", "dog"),
            ("neighbours", "a wrench", "wrench"),
        )
        for seed in (0, 1)
    ]
    metrics = EditMetrics(known, Vocabulary(None, [CAT]), requests, torch.device("cpu"))
    texts = ("a cat", "a cat", "a cat", "a dog", "a dog", "a dog", "a wrench", "a bird")
    before = [known.picture(text) for text in texts]
    after = [known.picture("a dog")] * 4 + before[4:]
    metrics.update(requests, torch.stack(before), torch.stack(after))
    estimates = metrics.estimates()
    means = {
        group: [estimate.mean for estimate in by_metric["recognized"].values()]
        for group, by_metric in estimates.items()
        if "recognized" in by_metric
    }
    assert means == {
        "efficacy": [1, 0],
        "generality": [0.5, 0],
        "neighbours": [0.5, 0.5],
        "specificity": [1, 1],
    }
    assert estimates["specificity"]["image_text"]["after"].mean == 1
    assert estimates["structure"]["distance"]["after"].mean == 0


@pytest.mark.parametrize(
    ("image_batch_size", "others"), [(5, 3), (1, 4)]
)  # 24 images; an odd number
def test_two_ranks_equal_one(measured, tmp_path, image_batch_size, others):
    """Up to rounding: batches differ with the number of ranks."""
    scorer = measured[1].scorer
    ranks = {"devices": 2, "strategy": "ddp_fork", "image_batch_size": image_batch_size}
    run(tmp_path, Measure(scorer), module(), others=others, **ranks)
    run(tmp_path / "one", Measure(scorer), module(), others=others)
    pair, one = (
        json.loads((tmp_path / place / "metrics.json").read_text()) for place in (".", "one")
    )
    assert pair["protocol"] == one["protocol"]
    assert pair["estimates"]["structure"]["distance"]["after"]["images"] == 3 * others
    for group, metrics in one["estimates"].items():
        for name, whens in metrics.items():
            for when, estimate in whens.items():
                assert pair["estimates"][group][name][when] == pytest.approx(estimate, abs=1e-4)
