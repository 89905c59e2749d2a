import json

import pytest
import torch
from edit_files import read_content, write_content
from PIL import Image
from trivial import Distillation

from erasure_lightning.__main__ import main
from erasure_lightning.api.load import load_edited
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.edits.edit import read_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.metrics.drift import MAX_PSNR, psnr
from erasure_lightning.testing import quick_fit
from erasure_lightning.training.latent_sources import PureNoise

CAT = [Concept("cat", "dog")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder with an edit of a model that lies on the disk, and the module that made it."""
    folder = tmp_path_factory.mktemp("saved")
    TinyBackbone().to_pipeline().save_pretrained(folder / "pipeline")
    module = quick_fit(
        SAGE(concepts=CAT, backbone=str(folder / "pipeline"), lr=1e-2, warmup=1, check_steps=0), 3
    )
    (folder / "run").mkdir()
    module.save_edit(folder / "run" / "edit.safetensors")
    return folder / "run", module


@pytest.fixture
def run(saved, tmp_path):
    """A copy of that run's folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "edit.safetensors").write_bytes(
        (saved[0] / "edit.safetensors").read_bytes()
    )
    return tmp_path / "run"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (40, 24), "red").save(path)
    return path


def purify(*argv):
    return main(["purify", *map(str, argv), "--steps", "2"])


@pytest.fixture
def error(capsys):
    """Runs the command, expects one line of error and exit code 2, and returns the line."""

    def message(*argv):
        assert purify(*argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("erasure: error: ")

    return message


def changed(path, **metadata):
    """The edit with other metadata."""
    tensors, description = read_content(path / "edit.safetensors")
    write_content(path / "edit.safetensors", tensors, description | metadata)
    return path / "edit.safetensors"


class TestCommand:
    def test_pictures_sheet_and_figures(self, run, picture, capsys):
        assert purify(picture, "--ckpt_path", run, "--prompt", "a cat") == 0
        out = run / "purify"
        assert {path.name for path in out.iterdir()} == {"red.png", "sheet.png", "purify.json"}
        assert Image.open(out / "red.png").size == (16, 16)
        content = json.loads((out / "purify.json").read_text())
        assert (content["prompt"], content["steps"], content["guidance"]) == ("a cat", 2, 1.0)
        drift = content["images"]["red"]
        assert 0 < drift["purified_psnr"] < MAX_PSNR
        assert drift["purified_features"] is None
        assert "Purified; the images are in" in capsys.readouterr().out

    def test_a_folder_of_any_sizes_and_a_second_time(self, run, picture, tmp_path):
        pictures = tmp_path / "in"
        pictures.mkdir()
        Image.new("RGBA", (9, 50)).save(pictures / "red.png")
        Image.new("L", (16, 16)).save(pictures / "sheet.jpg")
        for out in ("purify", "purify-2"):
            assert (
                purify(pictures, picture, "--ckpt_path", run / "edit.safetensors", "--prompt", "")
                == 0
            )
            names = {path.stem for path in (run / out).glob("*.png")}
            assert names == {"red", "sheet-2", "red-2", "sheet"}

    def test_a_base_model_that_was_moved_is_named(self, run, picture, tmp_path):
        """Without it, the control, the model is missing."""
        moved = tmp_path / "moved"
        TinyBackbone().to_pipeline().save_pretrained(moved)
        changed(run, backbone="elsewhere")
        argv = (picture, "--ckpt_path", run, "--prompt", "a cat")
        assert purify(*argv) == 2
        assert purify(*argv, "--backbone", moved) == 0

    def test_an_edit_that_changed_nothing_draws_the_same(self, tmp_path, picture):
        TinyBackbone().to_pipeline().save_pretrained(tmp_path / "pipeline")
        module = SAGE(concepts=CAT, backbone=str(tmp_path / "pipeline"))
        module.configure_model()
        module.save_edit(tmp_path / "edit.safetensors")
        assert (
            purify(picture, "--ckpt_path", tmp_path / "edit.safetensors", "--prompt", "a cat") == 0
        )
        drift = json.loads((tmp_path / "purify" / "purify.json").read_text())["images"]["red"]
        assert drift["purified_psnr"] > MAX_PSNR - 5
        assert drift["purified_l1"] < 1e-5


class TestMistakes:
    def test_no_such_picture(self, error, run):
        assert (
            error("gone.png", "--ckpt_path", run, "--prompt", "")
            == "No image at gone.png: there is no such file or folder."
        )

    def test_no_picture_at_all(self, error, run, tmp_path):
        (tmp_path / "notes.txt").touch()
        assert "PNG and JPEG files; found" in error(
            tmp_path / "notes.txt", "--ckpt_path", run, "--prompt", ""
        )
        assert "found none in the folder" in error(run, "--ckpt_path", run, "--prompt", "")

    @pytest.mark.parametrize("content", [b"", b"GIF", None])
    def test_a_picture_that_cannot_be_read(self, error, run, picture, content):
        broken = picture.with_name("broken.png")
        broken.write_bytes(picture.read_bytes()[:50] if content is None else content)
        assert "broken.png cannot be read as an image" in error(
            broken, "--ckpt_path", run, "--prompt", ""
        )

    def test_no_edit(self, error, picture, tmp_path):
        assert "No checkpoint at gone" in error(picture, "--ckpt_path", "gone", "--prompt", "")
        assert "is no run of ours that purify could use" in error(
            picture, "--ckpt_path", tmp_path, "--prompt", ""
        )

    def test_a_folder_that_is_not_empty(self, error, run, picture):
        assert "is not empty, and its files are not overwritten" in error(
            picture, "--ckpt_path", run, "--prompt", "", "--run_dir", run
        )

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--prompt", ""], "erasure purify needs --ckpt_path"),
            (["--ckpt_path", "run"], "erasure purify needs --prompt"),
            (["--out", "x"], "unknown argument '--out'. Did you mean '--run_dir'?"),
            (["--ckpt_path", "run", "--prompt", "", "--steps", "x"], "--steps needs a whole"),
            (["--ckpt_path", "run", "--prompt", "", "--steps", "0"], "at least 1; found 0"),
        ],
    )
    def test_options(self, capsys, picture, argv, message):
        assert main(["purify", str(picture), *argv]) == 2
        assert message in capsys.readouterr().err

    def test_more_steps_than_there_are(self, capsys, run, picture):
        assert (
            main(
                ["purify", str(picture), "--ckpt_path", str(run), "--prompt", "", "--steps", "1001"]
            )
            == 2
        )
        assert "needs from 1 to 1000 sampling steps; found 1001" in capsys.readouterr().err


class TestLoadEdited:
    def test_it_is_the_module_that_was_saved(self, saved):
        folder, module = saved
        loaded = load_edited(folder / "edit.safetensors")
        assert type(loaded) is SAGE
        assert loaded.concepts == CAT
        for name in ("backbone", "original"):
            theirs, ours = (getattr(m, name).encode(["a cat"]).tokens for m in (module, loaded))
            assert torch.equal(theirs, ours)
        assert not torch.equal(
            loaded.backbone.encode(["a cat"]).tokens, loaded.original.encode(["a cat"]).tokens
        )
        assert not any(p.requires_grad for p in loaded.parameters())

    @pytest.mark.parametrize("bank", ["<a bank>", {"class_path": "a.Bank", "init_args": {}}])
    def test_an_object_among_the_arguments_is_left_out(self, run, bank):
        description = read_edit(run / "edit.safetensors").metadata
        objects = {"latents": bank, "adversary": bank}
        loaded = load_edited(changed(run, arguments=description["arguments"] | objects))
        assert isinstance(loaded.latents, PureNoise)
        assert loaded.adversary is None

    def test_a_method_nobody_registered_is_not_imported(self, run, tmp_path, monkeypatch):
        (tmp_path / "foreign.py").write_text("open('ran', 'w')\nclass SAGE: ...\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.chdir(tmp_path)
        for method in ("foreign.SAGE", "foreign.Other", f"{Distillation.__module__}.Distillation"):
            with pytest.raises(
                ErasureError,
                match=f"made by the method {method}, which no installed package offers",
            ):
                load_edited(changed(run, method=method))
        assert not (tmp_path / "ran").exists()

    def test_arguments_of_another_version(self, run):
        with pytest.raises(
            ErasureError, match=r"arguments that SAGE does not take here .*made with: erasure-light"
        ):
            load_edited(changed(run, arguments={"wings": 2}))


def test_psnr_of_a_known_difference():
    a = torch.zeros(2, 3, 4, 4)
    assert psnr(a, a + torch.tensor([0.1, 0.0]).view(2, 1, 1, 1)).tolist() == pytest.approx(
        [20, MAX_PSNR]
    )
