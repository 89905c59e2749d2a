import io
import math
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image

from erasure_lightning.__main__ import main
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import THING_TEMPLATES, Concept, fill_template
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.realera import RealEraClosedForm
from erasure_lightning.training.calibration import Calibration, SentenceGroup, calibrate

CAT = Concept("cat", domain=["small cat"])


def group(*cosines):
    return SentenceGroup(
        [f"word {i}" for i in range(len(cosines))], torch.tensor(cosines), torch.ones(len(cosines))
    )


class TestMeasure:
    @pytest.mark.parametrize("states", ["tokens", "eot"])
    def test_the_same_words_are_at_cosine_one(self, states):
        result = calibrate(
            TinyBackbone(), Concept("cat", domain=["Cat"]), unrelated=["dog"], states=states
        )
        same, other = result.groups["associated"], result.groups["unrelated"]
        assert torch.allclose(same.cosines, torch.ones(10))
        assert same.distances.abs().max() < 1e-2
        assert other.cosines.max() < 0.999
        assert other.distances.min() > 0.1

    def test_at_the_end_of_text_it_is_the_nearest_of_the_concepts_sentences(self):
        backbone = TinyBackbone()
        result = calibrate(backbone, CAT, unrelated=["dog"], states="eot").groups
        dogs, cats = (
            backbone.summarize(backbone.embed([t.format(word) for t in THING_TEMPLATES]))
            for word in ("dog", "cat")
        )
        cosines = torch.cosine_similarity(dogs[3], cats)
        assert result["unrelated"].cosines[3].item() == pytest.approx(cosines.max().item())
        nearest = cats[cosines.argmax()]
        assert result["unrelated"].distances[3].item() == pytest.approx(
            (dogs[3] - nearest).norm().item(), rel=1e-3
        )
        apart = torch.cosine_similarity(cats[3], cats[torch.arange(10) != 3])
        assert result["rephrasings"].cosines[3].item() == pytest.approx(apart.max().item())

    def test_tokens_are_lined_up_from_the_concepts_words_on(self):
        result = calibrate(TinyBackbone(), CAT, unrelated=["dog"]).groups["unrelated"]
        backbone, own = TinyBackbone(), [fill_template(t, "cat") for t in THING_TEMPLATES]
        plain, other = (
            backbone.embed(own[3:4]),
            backbone.embed([fill_template(THING_TEMPLATES[3], "dog")]),
        )
        there, here = (backbone.contextualize(e).tokens[0, 5:] for e in (plain, other))
        same_sentence = torch.cosine_similarity(here, there, dim=1).mean().item()
        assert same_sentence <= result.cosines[3].item() + 1e-6 < 1

    def test_the_implied_bounds(self):
        result = calibrate(TinyBackbone(), CAT, unrelated=["dog", "house"], synonyms=["bird"])
        again, near, far = (g.cosines.median().item() for g in result.groups.values())
        assert set(result.groups["rephrasings"].words) == {"cat", "bird"}
        assert again - 0.011 <= result.max_cosine < again
        assert result.min_cosine == pytest.approx(
            min((near + far) / 2, result.max_cosine), abs=0.006
        )
        distance = result.length * math.sqrt(2 - 2 * result.min_cosine)
        assert distance <= result.max_distance < distance + 0.01

    def test_the_share_within_bounds(self):
        assert group(0.2, 0.5, 0.6, 0.9).within(0.4, 0.6) == 0.5

    def test_the_premise(self):
        sorts = {"associated": group(0.5, 0.6), "unrelated": group(0.3, 0.55)}
        result = Calibration(sorts, 1.0, 0.4, 0.8, 1.0)
        assert result.separation() == 0.75
        assert result.holds()
        turned = result._replace(
            groups={"associated": sorts["unrelated"], "unrelated": sorts["associated"]}
        )
        assert turned.separation() == 0.25
        assert not turned.holds()

    @pytest.mark.parametrize("empty", ["associated", "unrelated"])
    def test_a_group_with_nothing_in_it(self, empty):
        world = load_backbone("emoji-world").world
        backbone = TinyBackbone()
        backbone.world = replace(world, labels=())
        concept = Concept("cat", domain=["small cat"] if empty == "unrelated" else [])
        with pytest.raises(ErasureError, match=f"at least one {empty} word for 'cat'"):
            calibrate(backbone, concept, unrelated=[] if empty == "unrelated" else ["dog"])


class TestCommand:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_on_the_emoji_world(self, folder, capsys):
        few = ["--unrelated", "dog,pizza,guitar,lollipop"]
        assert (
            main(
                [
                    "calibrate",
                    "--backbone",
                    "emoji-world",
                    "--concept",
                    "cigarette",
                    "--states",
                    "eot",
                    *few,
                ]
            )
            == 0
        )
        words = capsys.readouterr().out
        assert (
            "The premise holds: an associated sentence is nearer than an unrelated one in 100 % of"
            " pairs." in words
        )
        for name in ("rephrasings", "associated", "unrelated"):
            assert name in words
        out = folder / "calibration-cigarette"
        config = yaml.safe_load((out / "calibration.yaml").read_text())
        assert (out / "calibration.yaml").read_text() in words
        bounds = config["model"]["init_args"]
        assert 0.4 < bounds["min_cosine"] < 0.7 < bounds["max_cosine"] < 0.95
        RealEraClosedForm(backbone="emoji-world", concepts=[Concept("cigarette")], **bounds)
        picture = Image.open(io.BytesIO((out / "calibration.png").read_bytes()))
        assert min(picture.size) > 400

    def test_a_premise_that_does_not_hold(self, capsys):
        words = [
            "--associated",
            "dog,pizza",
            "--unrelated",
            "smoking,tobacco",
            "--states",
            "eot",
            "--run_dir",
            "here",
        ]
        assert (
            main(["calibrate", "--backbone", "emoji-world", "--concept", "cigarette", *words]) == 0
        )
        assert "The premise does not hold" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            ([], "erasure calibrate needs --concept"),
            (["--concept", "fox"], "no shipped file of concepts has them; give --associated A,B"),
            (
                ["--concept", "cigarete", "--associated", "a"],
                "does not know 'cigarete'. Nearest: cigarette",
            ),
            (
                ["--concept", "cigarette", "--run_dir", "full"],
                "full is not empty, and its files are not overwritten",
            ),
        ],
    )
    def test_mistakes(self, folder, capsys, argv, words):
        (folder / "full").mkdir()
        (folder / "full" / "file").touch()
        assert main(["calibrate", "--backbone", "emoji-world", *argv]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
