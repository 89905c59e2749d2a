"""NaN and infinity in images and figures are errors; what is written is finite."""

import json
import math

import pytest
import torch
from trivial import PlainPrompt, Redirection, method_options
from under_attack import tiny_target

from erasure_lightning.__main__ import main
from erasure_lightning.attacks.runner import attack_concepts
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.finite_images import require_finite_images
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import json_text, write_json
from erasure_lightning.retention.monitor import RetentionMonitor
from erasure_lightning.testing import quick_fit

pytestmark = pytest.mark.usefixtures("folder")

FEW = [
    *("--data.steps", "2", "--data.others", "2", "--data.seeds", "2"),
    *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
    *("--trainer.accelerator", "cpu"),
]
ONE_STEP = [*FEW, "--trainer.max_steps", "1", "--run_dir", "run"]
HELP = (
    "Compare its scheduler with the one it was trained with (prediction_type,"
    " rescale_betas_zero_snr: epsilon "
)
HELP += "cannot be drawn from at a signal-to-noise ratio of 0), and its weights with their source."


class Spoiled(Redirection):
    """Draws no number with one of its two models."""

    which = "backbone"

    def configure_model(self):
        incomplete = "backbone" not in self._modules
        super().configure_model()
        if incomplete:
            model = getattr(self, self.which)
            model.denoise = lambda x, t, c, guidance=None: torch.full_like(x, math.nan)


@pytest.fixture
def loud(folder):
    """A folder whose predictions are so large that all its images are NaN."""
    model = TinyBackbone()
    with torch.no_grad():
        model.denoiser.conv_out.bias[0] = 3e38
    model.save(folder / "loud")
    return "loud"


def test_epsilon_at_a_signal_to_noise_ratio_of_zero_is_refused_before_anything_is_drawn(
    folder, capsys
):
    TinyBackbone().save(folder / "zero-eps")
    path = folder / "zero-eps/scheduler/scheduler_config.json"
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    line = error(capsys, "fit", *method_options("UCE", "zero-eps"))
    assert line.startswith(
        "zero-eps needs another sampler: DDIMScheduler ends in latents that are not finite"
    )


@pytest.fixture
def edit(loud):
    """A run of a fit that was not measured."""
    argv = ["fit", *method_options("trivial.Redirection", loud), *ONE_STEP]
    assert main([*argv, "--measure", "false"]) == 0
    return "run"


def error(capsys, *argv):
    capsys.readouterr()
    assert main(list(argv)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("erasure: error: ")


class TestCommands:
    def test_fit_keeps_its_edit_and_writes_no_figures(self, loud, folder, capsys):
        line = error(capsys, "fit", *method_options("trivial.Redirection", loud), *ONE_STEP)
        words = "The original model loud generates NaN or infinity for 'cat' with DDIMScheduler."
        assert line == f"{words} {HELP}"
        assert (folder / "run/edit.safetensors").exists()
        assert not (folder / "run/metrics.json").exists()

    @pytest.mark.parametrize("command", ["test", "validate"])
    def test_measurements(self, command, edit, capsys):
        line = error(capsys, command, "--ckpt_path", edit, *FEW)
        assert line.startswith(
            "The original model loud generates NaN or infinity for 'cat' with DDIMScheduler."
        )

    def test_predict_writes_no_image(self, edit, folder, capsys):
        (folder / "prompts.csv").write_text("prompt,evaluation_seed\na dog,1\n")
        line = error(
            capsys,
            "predict",
            "--ckpt_path",
            edit,
            "--data.prompts",
            "prompts.csv",
            "--run_dir",
            "out",
            *FEW,
        )
        assert line.startswith(
            "The original model loud generates NaN or infinity for 'a dog' with DDIMScheduler."
        )
        assert not list((folder / "out").rglob("*.png"))

    def test_kept_images_of_the_original_hold_none(self, edit, folder, capsys):
        error(capsys, "test", "--ckpt_path", edit, "--data.originals", "images", *FEW)
        assert not list(folder.glob("images/*"))


@pytest.mark.parametrize(("which", "called"), [("original", "original"), ("backbone", "edited")])
def test_the_model_is_named_that_drew_them(which, called):
    module = Spoiled(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    module.which = which
    monitor = RetentionMonitor(every=1, count=1, steps=2)
    with pytest.raises(
        ErasureError, match=f"The {called} model TinyBackbone generates NaN or infinity for"
    ):
        quick_fit(module, 1, monitor)


def test_an_attack_on_a_model_that_draws_none():
    target = tiny_target()
    target.edited.denoise = lambda x, t, c, guidance=None: torch.full_like(x, math.nan)
    with pytest.raises(
        ErasureError, match="The edited model TinyBackbone generates NaN or infinity for .*cat"
    ):
        attack_concepts(PlainPrompt(), target, report=lambda line: None)


def test_an_original_that_draws_none_has_no_examples():
    target = tiny_target()
    target.original.denoise = lambda x, t, c, guidance=None: torch.full_like(x, math.nan)
    with pytest.raises(
        ErasureError, match="The original model TinyBackbone generates NaN or infinity for .*cat"
    ):
        target.examples(target.cases(0)[0], 2)


def test_an_attack_that_lost_its_numbers():
    class Exploded(PlainPrompt):
        def find(self, target, case):
            result = super().find(target, case)
            return result.__class__(result.images * math.nan)

    words = (
        "The attacked model TinyBackbone generates NaN or infinity .* Attack with a lower rate or"
        " fewer steps."
    )
    with pytest.raises(ErasureError, match=words):
        attack_concepts(Exploded(), tiny_target(), report=lambda line: None)


def test_the_first_image_is_named():
    images = torch.zeros(3, 3, 4, 4)
    assert require_finite_images(images, "edited", TinyBackbone(), ["a", "b", "c"]) is images
    images[1, 0, 0, 0] = math.inf
    with pytest.raises(
        ErasureError, match="for 'b' with DDIMScheduler. Erase again with a lower rate"
    ):
        require_finite_images(images, "edited", TinyBackbone(), ["a", "b", "c"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_holds_no_number_that_is_none(value, tmp_path):
    path = tmp_path / "metrics.json"
    with pytest.raises(
        ErasureError, match=rf"metrics.json needs finite numbers; found {value} at a\.1\.b"
    ):
        write_json(path, {"first": 1.0, "a": [0.5, {"b": value}]})
    assert not path.exists()


def test_json_of_what_it_can_hold():
    assert json_text({"a": [1, None, "NaN"]}, "It") == '{"a": [1, null, "NaN"]}'
