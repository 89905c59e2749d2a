import sys
from types import ModuleType

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import Adam, AdamW
from trivial import Distillation, method_options

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.cli.main import main
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.testing import edit_of, quick_fit
from erasure_lightning.training import optimizers
from erasure_lightning.training.optimizers import make_optimizer, rate_factor


class Adam8bit(Adam):
    """Stands in for the package's, which needs a wheel of its own."""


@pytest.fixture
def package(monkeypatch):
    inner = ModuleType("bitsandbytes.optim")
    inner.Adam8bit = Adam8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", inner)
    monkeypatch.setattr(optimizers, "find_spec", lambda name: inner)


def build(**arguments):
    return Distillation(
        concepts=[Concept("cat", "dog")], backbone=TinyBackbone(), lr=1e-2, **arguments
    )


def test_the_package_moves_the_edit(package):
    module = quick_fit(build(optimizer="adam8bit"), 2)
    assert type(module.trainer.optimizers[0]) is Adam8bit
    assert type(quick_fit(build(), 1).trainer.optimizers[0]) is Adam
    before = dict(module.original.named_parameters())
    assert all(not torch.equal(value, before[name]) for name, value in edit_of(module).items())


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    argv = ["--model.optimizer", "adam8bit", "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *method_options("ESD"), *argv, "--trainer.max_steps", "1"]) == 2
    assert "pip install 'erasure-lightning[bitsandbytes]'" in capsys.readouterr().err


def test_split_weights_are_refused(package, monkeypatch):
    monkeypatch.setattr(optimizers, "DTensor", torch.nn.Parameter)
    with pytest.raises(ErasureError, match="needs whole weights"):
        make_optimizer("adam8bit", [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 1e-3}])


@pytest.mark.parametrize(
    ("arguments", "kind", "decay"),
    [
        ({}, Adam, 0.0),
        ({"weight_decay": 0.1}, Adam, 0.1),
        ({"optimizer": "adamw"}, AdamW, 0.01),
        ({"optimizer": "adamw", "weight_decay": 0.0}, AdamW, 0.0),
    ],
)
def test_weights_decay_by_adamw_alone_unless_told_otherwise(arguments, kind, decay):
    (optimizer,) = quick_fit(build(**arguments), 1).trainer.optimizers
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["weight_decay"] == decay


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", 0, [1.0, 1.0, 1.0, 1.0]),
        ("constant", 2, [0.5, 1.0, 1.0, 1.0]),
        ("cosine", 0, [1.0, 0.853553, 0.5, 0.146447]),
        ("cosine", 2, [0.5, 1.0, 1.0, 0.5]),
    ],
)
def test_rates_rise_and_then_stay_or_fall(schedule, warmup, factors):
    factor = rate_factor(schedule, warmup, 4)
    assert [factor(step) for step in range(4)] == pytest.approx(factors, abs=1e-6)
    module = quick_fit(build(schedule=schedule, warmup=warmup), 3, total=4)
    (rate,) = module.lr_schedulers().get_last_lr()
    assert rate == pytest.approx(1e-2 * factors[3], abs=1e-8)


def test_the_rate_stays_by_default_as_in_official_code():
    assert (build().schedule, build().warmup) == ("constant", 0)


class Rates(Callback):
    """Collects the rates of a fit's steps."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_a_second_fit_without_a_datamodule_has_a_schedule_of_its_own():
    module, rates = quick_fit(build(schedule="cosine"), 1), Rates()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_steps=4, accelerator="cpu", callbacks=[rates], **quiet).fit(module)
    factor = rate_factor("cosine", 0, 4)
    assert rates.seen == pytest.approx([module.lr * factor(step) for step in range(4)])


def test_a_negative_decay_is_refused():
    with pytest.raises(
        ErasureError, match="Distillation needs weight_decay of at least 0; found -0.1"
    ):
        build(weight_decay=-0.1)
