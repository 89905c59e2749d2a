import csv
import json
import math

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_scorers import KnownScorer, save_scorer

from erasure_lightning.__main__ import main
from erasure_lightning.api import score as api
from erasure_lightning.api.image_folder import read_image_folder
from erasure_lightning.callbacks.image_writer import MANIFEST_COLUMNS
from erasure_lightning.metrics.distribution_distance import FrechetDistance
from erasure_lightning.metrics.image_metrics import ClipScore, LabelAccuracy, MetricBatch
from erasure_lightning.metrics.perceptual import AlexNet
from erasure_lightning.metrics.score import Score

PROMPTS = ["a cat", "a dog", "a bird"]


class Eye:
    """A detector that calls dark pictures explicit."""

    def detect(self, path):
        dark = numpy.asarray(Image.open(path)).mean() < 64
        return [{"class": "BUTTOCKS_EXPOSED", "score": 0.55}] if dark else []


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Small networks, as files."""
    folder = tmp_path_factory.mktemp("weights")
    save_scorer(folder / "clip")
    save_file(AlexNet().state_dict(), folder / "alexnet.safetensors")
    (folder / "labels.txt").write_text("cat\ndog\nbird\n")
    return folder


def draw(folder, edited=0, seeds=3):
    """A folder as predict leaves it; ``edited`` says how much darker the edited pictures are."""
    generator = numpy.random.default_rng(0)
    rows = []
    for case, (prompt, seed) in enumerate((p, s) for p in PROMPTS for s in range(seeds)):
        picture = generator.integers(100, 255, (64, 64, 3), dtype=numpy.uint8)
        for kind, pixels in (("original", picture), ("edited", picture - numpy.uint8(edited))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{case}.png")
        rows.append(
            (case, prompt, seed, 20, 4.0, "", "", f"edited/{case}.png", f"original/{case}.png")
        )
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([MANIFEST_COLUMNS, *rows])
    return folder


def everything(weights):
    """Every metric."""
    clip = str(weights / "clip")
    networks = ["--scorer", clip, "--features", clip]
    networks += ["--alexnet", str(weights / "alexnet.safetensors")]
    metrics = ["--metrics", "clip,accuracy,fid,kid,lpips,nudenet"]
    return [*metrics, *networks, "--labels", str(weights / "labels.txt"), "--threshold", "0.5"]


@pytest.fixture
def eye(monkeypatch):
    """The detector in place of NudeNet."""
    monkeypatch.setattr(
        api, "load_detector", lambda: (Eye(), {"library": "eye 1.0", "weights": "e"})
    )


@pytest.mark.parametrize(
    ("seeds", "independent"),
    [([0, 0, 0, 0], 4), ([0, 0, 0, 1], 4), ([0, 0, 1, 1], 2)],
    ids=["one", "all but one", "two"],
)
def test_images_count_as_independent_where_a_seed_left_out_leaves_no_two(
    tmp_path, seeds, independent
):
    draw(tmp_path, seeds=2)
    with (tmp_path / "manifest.csv").open(newline="") as file:
        heading, *rows = csv.reader(file)
    rows = rows[: len(seeds)]
    for row, seed in zip(rows, seeds, strict=True):
        row[heading.index("evaluation_seed")] = seed
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([heading, *rows])
    read = [image.seed for image in read_image_folder(tmp_path)]
    assert len(set(read)) == independent
    distance = FrechetDistance()
    distance.update_reference(torch.rand(4, 2))
    distance.update(torch.rand(4, 2), read)
    assert math.isfinite(distance.compute().high)


def test_pictures_that_are_the_same_score_the_same(tmp_path, weights, eye, capsys):
    assert main(["score", str(draw(tmp_path / "drawn")), *everything(weights)]) == 0
    result = Score.load(tmp_path / "drawn" / "score.json").estimates
    for name in ("clip", "accuracy", "nudenet explicit"):
        assert result[name]["before"] == result[name]["after"]
    assert result["lpips"]["after"].mean == 0
    assert result["fid"]["after"].mean == pytest.approx(0, abs=1e-6)
    assert result["kid"]["after"].mean < 1e-3
    assert result["clip"]["after"][3:] == (3, 9)
    words = capsys.readouterr().out
    assert "Scored 9 images" in words
    assert "nudenet BUTTOCKS_EXPOSED" in words


def test_pictures_that_moved_score_otherwise(tmp_path, weights, eye):
    assert main(["score", str(draw(tmp_path / "drawn", edited=90)), *everything(weights)]) == 0
    assert main(["score", str(draw(tmp_path / "same")), *everything(weights)]) == 0
    result, same = (
        Score.load(tmp_path / name / "score.json").estimates for name in ("drawn", "same")
    )
    assert result["clip"]["before"] == same["clip"]["before"]
    assert result["clip"]["after"] != same["clip"]["after"]
    for name in ("lpips", "fid", "kid"):
        assert result[name]["after"].mean > same[name]["after"].mean + 1e-6


def test_the_protocol_says_how(tmp_path, weights, eye):
    assert main(["score", str(draw(tmp_path / "drawn")), *everything(weights)]) == 0
    protocol = json.loads((tmp_path / "drawn" / "score.json").read_text())["protocol"]
    assert protocol["drawn"]["images"] == 9
    metrics = protocol["metrics"]
    assert metrics["nudenet"]["threshold"] == 0.5
    assert metrics["nudenet"]["library"] == "eye 1.0"
    assert "BUTTOCKS_EXPOSED" in metrics["nudenet"]["explicit"]
    assert metrics["accuracy"]["template"] == "a photo of a {}"
    assert metrics["fid"]["against"] == "before"
    assert all(
        len(metrics[name]["weights"]) == 16 for name in ("clip", "accuracy", "fid", "kid", "lpips")
    )


def test_real_pictures_are_a_reference_of_both(tmp_path, weights):
    drawn = draw(tmp_path / "drawn", edited=90)
    argv = ["--metrics", "fid", "--features", str(weights / "clip")]
    argv += ["--reference", str(drawn / "original")]
    assert main(["score", str(drawn), *argv]) == 0
    result = Score.load(drawn / "score.json")
    assert (
        result.estimates["fid"]["before"].mean
        == pytest.approx(0, abs=1e-6)
        != result.estimates["fid"]["after"].mean
    )
    assert len(result.protocol["reference"]) == 16
    assert main(["score", str(drawn / "edited"), *argv]) == 0
    plain = Score.load(drawn / "edited" / "score.json").estimates["fid"]
    assert plain["after"].mean == pytest.approx(result.estimates["fid"]["after"].mean)
    assert set(plain) == {"after"}


def test_scores_are_compared_if_they_came_about_in_one_way(tmp_path, eye, capsys):
    for name, threshold in (("a", "0.5"), ("b", "0.5"), ("c", "0.6")):
        drawn = draw(tmp_path / "drawn" / name, edited=90 if name == "b" else 0)
        argv = ["--metrics", "nudenet", "--threshold", threshold, "--run_dir", str(tmp_path / name)]
        assert main(["score", str(drawn), *argv]) == 0
    files = [str(tmp_path / "a" / "score.json"), str(tmp_path / "b"), str(tmp_path / "c")]
    assert main(["compare", *files[:2]]) == 0
    capsys.readouterr()
    assert main(["compare", *files[1:]]) == 2
    assert (
        "scored differently and cannot be compared. They differ in metrics.nudenet.threshold: 0.5"
        " and 0.6" in (capsys.readouterr().err)
    )


# exact values


class TwoVectors(KnownScorer):
    """Texts and pictures point along one of two axes."""

    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")

    def texts(self, prompts):
        return torch.stack(
            [torch.tensor([1.0, 0.0] if "cat" in prompt else [0.0, 1.0]) for prompt in prompts]
        )

    def images(self, pictures):
        return torch.nn.functional.normalize(pictures[:, :2, 0, 0], dim=1)


def batch(colours, prompts, seeds):
    """Pictures of one colour each."""
    pictures = torch.tensor(colours).view(-1, 3, 1, 1).expand(-1, 3, 4, 4)
    return MetricBatch(prompts, seeds, {"before": pictures, "after": pictures.flip(1)}, {})


def test_the_clip_score_of_two_vectors_is_their_cosine():
    meter = ClipScore(TwoVectors(), ["before", "after"], [0, 1])
    meter.update(batch([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]], ["a cat", "a cat"], [0, 1]))
    result = meter.estimates()["clip"]
    assert result["before"].mean == pytest.approx((1 + 0.6) / 2)
    assert result["after"].mean == 0


def test_a_picture_is_right_if_it_shows_what_its_prompt_names():
    meter = LabelAccuracy(TwoVectors(), ["cat", "hot dog", "dog"], "a {}", ["before"], [0, 1])
    assert meter.label_in("A photo of a Cat, sleeping") == "cat"
    assert meter.label_in("a hot dog") == "hot dog"
    assert meter.label_in("a catalogue") is None
    cat, dog = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    meter.update(batch([cat, dog, dog, cat], ["a cat", "a cat", "nothing", "a cat"], [0, 1, 0, 1]))
    result = meter.estimates()["accuracy"]["before"]
    assert result.images == 3
    assert result.mean == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize("label", ["T-shirt", "jack-o'-lantern", "ice cream", "mother's day"])
def test_a_label_with_punctuation_is_in_a_prompt_that_names_it(label):
    meter = LabelAccuracy(TwoVectors(), [label, "☂"], "a photo of a {}", ["after"], [0])
    for prompt in (f"a photo of a {label}, at night", label.upper(), label.replace(" ", "-")):
        assert meter.label_in(prompt) == label
    assert meter.label_in("") is None
    assert meter.label_in("a photo of a shirt") is None


# mistakes


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["nowhere", "--metrics", "nudenet"],
            "erasure score needs a folder of images; found none at nowhere.",
        ),
        (
            ["drawn", "--metrics", "clp"],
            "unknown metric 'clp'. Did you mean 'clip'? Known: clip, accuracy, fid, ",
        ),
        (
            ["drawn", "--metrics", "clip"],
            "clip needs a folder with a CLIP or SigLIP: give --scorer.",
        ),
        (
            ["drawn", "--metric", "clip=CLIP"],
            "unknown argument '--metric'. Did you mean '--metrics'?",
        ),
        (["drawn"], "erasure score needs --metrics (see erasure score --help)."),
        (["drawn", "--metrics", ""], "erasure score needs metrics; found none."),
        (
            ["drawn", "--metrics", "clip", "--scorer", "nowhere"],
            "The scorer 'nowhere' was not found: it is no folder and no Hub id",
        ),
        (
            ["drawn", "--metrics", "fid", "--features", "nowhere"],
            "The network 'nowhere' was not found: it is no folder and no Hub id",
        ),
        (
            ["drawn", "--metrics", "fid", "--features", "pickle"],
            "The network 'pickle' needs weights as safetensors; found model.bin",
        ),
        (
            ["drawn", "--metrics", "accuracy", "--scorer", "CLIP"],
            "accuracy needs what an image may show: give --labels FILE",
        ),
        (
            ["drawn/edited", "--metrics", "clip", "--scorer", "CLIP"],
            "clip needs what predict writes",
        ),
        (
            ["drawn/edited", "--metrics", "fid", "--features", "CLIP"],
            "fid of a plain folder needs images to compare with",
        ),
        (
            ["empty", "--metrics", "nudenet"],
            "erasure score needs PNG or JPEG files, or predict's manifest.csv",
        ),
        (
            ["drawn/samples", "--metrics", "nudenet"],
            "erasure score needs images of one model, or the pairs that predict writes; found a"
            " run's samples, before and after the edit, in drawn/samples. Generate more of them:"
            " erasure predict --ckpt_path drawn --data.prompts FILE.",
        ),
        (
            ["one", "--metrics", "nudenet"],
            "erasure score needs at least 3 images for an interval; found 1.",
        ),
        (
            ["drawn", "--metrics", "nudenet", "--threshold", "0.1"],
            "nudenet needs a threshold from 0.25",
        ),
        (
            ["drawn", "--metrics", "nudenet", "--template", "a photo"],
            "--template needs {} for the label; found 'a photo'.",
        ),
        (
            ["drawn", "--metrics", "nudenet", "--out", "there.json"],
            "unknown argument '--out'. Did you mean '--run_dir'?",
        ),
        (
            ["torn", "--metrics", "nudenet"],
            "torn/manifest.csv names original/0.png, which is not there.",
        ),
        (
            ["odd", "--metrics", "nudenet"],
            "odd/manifest.csv needs rows as `erasure predict` writes them",
        ),
        (
            ["drawn", "--metrics", "kid", "--features", "CLIP", "--reference", "one"],
            "kid compares two sets and needs at least 2 images as --reference; found 1.",
        ),
        (
            ["small", "--metrics", "lpips", "--alexnet", "ALEXNET"],
            "lpips needs images of at least 31 pixels a side; found 30 x 40.",
        ),
        (
            ["uneven", "--metrics", "lpips", "--alexnet", "ALEXNET"],
            "The images of a pair need one size; found two, in uneven/original/0.png and ",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path, weights, eye, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "one", "odd", "pickle"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save("one/x.png")
    (tmp_path / "pickle" / "model.bin").touch()
    (tmp_path / "odd" / "manifest.csv").write_text("file\nx\n")
    draw(tmp_path / "drawn")
    (tmp_path / "drawn" / "samples").mkdir()
    for name in ("000-before", "000-after", "001-before", "001-after"):
        Image.new("RGB", (8, 8)).save(f"drawn/samples/{name}.png")
    (tmp_path / "drawn" / "samples" / "samples.csv").touch()
    (draw(tmp_path / "torn") / "original" / "0.png").unlink()
    for folder, size in (("small/original", (40, 30)), ("small/edited", (40, 30)),
                         ("uneven/edited", (40, 40))):  # fmt: skip
        if not (tmp_path / folder).exists():
            draw(tmp_path / folder.partition("/")[0])
        for path in (tmp_path / folder).iterdir():
            Image.open(path).resize(size).save(path)
    files = {"CLIP": weights / "clip", "ALEXNET": weights / "alexnet.safetensors"}
    assert main(["score", *(str(files.get(word, word)) for word in argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"erasure: error: {words}")
    assert not list(tmp_path.rglob("score.json"))


def test_nothing_is_overwritten(tmp_path, eye, capsys):
    drawn = draw(tmp_path / "drawn")
    assert main(["score", str(drawn), "--metrics", "nudenet"]) == 0
    before = (drawn / "score.json").read_bytes()
    assert main(["score", str(drawn), "--metrics", "nudenet"]) == 2
    assert "score.json exists already, and is not overwritten" in capsys.readouterr().err
    assert (drawn / "score.json").read_bytes() == before
