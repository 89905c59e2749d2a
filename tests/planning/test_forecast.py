import json

import pytest
import torch
from lightning import Trainer

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.cli.main import main
from erasure_lightning.cli.plan import Planner
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.realera import RealEra
from erasure_lightning.methods.uce import UCE
from erasure_lightning.planning.device_memory import DeviceMemory
from erasure_lightning.planning.forecast import forecast
from erasure_lightning.planning.memory_tracker import MemoryTracker
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.training.trajectory_bank import TrajectoryBank

TOLD = ["--model", "ESD", "--model.concepts", "[{name: cat}]", "--model.backbone", "TinyBackbone"]


def made(method, **arguments):
    return method(concepts=[Concept("cat", "dog")], backbone=TinyBackbone(), **arguments)


def planned(method, *callbacks, **arguments):
    return forecast(
        made(method, **arguments), PromptData(batch_size=4), callbacks, measure=False, max_steps=3
    )


def fitted(method, *callbacks, **arguments):
    """The most that tensors of a real fit held at once, and what its denoisers were asked."""
    module, ledger = made(method, **arguments), MemoryTracker()
    module.configure_model()
    ledger.hold([*module.parameters(), *module.buffers()])
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, log_every_n_steps=1, callbacks=list(callbacks),
    )  # fmt: skip
    with ledger, EvaluationCounter({module.backbone.denoiser, module.original.denoiser}) as tally:
        trainer.fit(module, PromptData(batch_size=4))
    return ledger.peak, tally


@pytest.mark.parametrize(
    ("method", "arguments", "retains"),
    [
        (ESD, {"latents": lambda: TrajectoryBank(trajectories=4, steps=3)}, True),
        (
            ESD,
            {"train": lambda: "all", "checkpointing": lambda: True, "base": lambda: "bfloat16"},
            False,
        ),
        (UCE, {}, False),
    ],
)
def test_what_is_planned_is_what_a_fit_takes(method, arguments, retains):
    def given():
        return [LocalNoisePreservation(prompts=["a car"])] if retains else [], {
            k: v() for k, v in arguments.items()
        }

    callbacks, told = given()
    found = planned(method, *callbacks, **told)
    callbacks, told = given()
    peak, tally = fitted(method, *callbacks, **told)
    assert max(found.peaks.values()) == pytest.approx(peak, rel=0.05)
    middle = found.asked["last"]
    if method is ESD and not retains:  # a bank's answers are kept, and the steps differ
        assert tally.evaluations == 3 * (middle["student"] + middle["teacher"])
        assert tally.backwards == 3 * middle["backwards"]


def test_as_many_prompts_are_planned_to_be_retained_as_are():
    """Which labels are near nobody knows before the run, but how many."""
    plan, run, every = (LocalNoisePreservation(nearness=share) for share in (0.98, 0.98, 1))
    planned(UCE, plan)
    planned(UCE, every)
    fitted(UCE, run)
    assert len(plan.retained) == len(run.retained)
    assert len(every.retained) == len(plan.retained) + 3


def test_what_is_merged_at_the_end_is_planned_as_it_is_trained():
    merged, kept = planned(RealEra, merge=True).held, planned(RealEra, merge=False).held
    assert merged == kept
    assert merged.trained > 0


def test_a_method_of_a_plugin_that_looks_at_values_is_planned(capsys):
    assert (
        main(
            ["plan", "--config", "speed.yaml", "--measure", "false", "--trainer.accelerator", "cpu"]
        )
        == 0
    )
    assert "SPEED, planned for one device" in capsys.readouterr().out


@pytest.fixture(scope="module")
def plain():
    return planned(ESD, train="all")


def test_each_remedy_lowers_what_it_should(plain):
    thrifty, eight = (
        planned(ESD, train="all", checkpointing=True, base="bfloat16"),
        planned(ESD, train="all", optimizer="adam8bit"),
    )
    assert thrifty.held.weights.frozen == pytest.approx(plain.held.weights.frozen / 2, rel=0.01)
    assert thrifty.held.weights.edit == plain.held.weights.edit
    assert (
        thrifty.peaks["step"] - plain.peaks["step"]
        < thrifty.held.weights.frozen - plain.held.weights.frozen
    )
    assert eight.held.state < 0.6 * plain.held.state  # most tensors of a tiny model stay in float32
    assert plain.peaks["step"] - eight.peaks["step"] == plain.held.state - eight.held.state


def test_a_bank_counts_and_is_walked_on_paper_only():
    asked = []
    model = TinyBackbone()
    model.denoiser.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    module = ESD(
        concepts=[Concept("cat")],
        backbone=model,
        latents=TrajectoryBank(trajectories=8, steps=50, batch_size=8),
    )
    found = forecast(module, PromptData(batch_size=4), measure=False, max_steps=9)
    assert found.held.bank == pytest.approx(3 * 8 * 50 * 4 * 8 * 8 * 4, rel=0.1)
    assert found.sampled == 8 * 50 * 2
    assert len(asked) < 10


def test_splitting_shares_what_it_splits(plain):
    found = plain
    one, two = DeviceMemory(found, 1, "one device"), DeviceMemory(found, 2, "ddp")
    split = DeviceMemory(found, 2, "fsdp2")
    assert two.peak == one.peak + found.held.gradients
    for name in ("what is edited", "its gradients", "its optimizer", "the original's own copies"):
        assert split.rows[name] == one.rows[name] // 2
    assert (
        split.rows["frozen weights"]
        == found.held.weights.frozen
        - found.held.weights.divisible
        + found.held.weights.divisible // 2
    )
    solved = planned(UCE)
    assert DeviceMemory(solved, 2, "fsdp2").rows["what is edited"] == solved.held.weights.edit


def test_the_command_says_it_all_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [
        "--data.others",
        "2",
        "--data.seeds",
        "2",
        "--data.steps",
        "2",
        "--data.draw_size",
        "64",
    ]
    assert main(["plan", *TOLD, *small, "--trainer.devices", "2", "--gpu_memory", "0.001"]) == 1
    shown = capsys.readouterr().out
    for words in (
        "activations and temporaries",
        "Parameters: denoiser 0.2 M",
        "Trained: 0.009 M",
        "Does not fit",
        "draw",
    ):
        assert words in shown
    TinyBackbone().to_pipeline().save_pretrained(tmp_path / "tiny")
    assert main(["plan", *TOLD[:-1], str(tmp_path / "tiny"), *small, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == 1
    assert found["held"]["trained"] == 8784
    assert found["peak"] == found["peaks_per_device"][found["peak_when"]]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        ([], 1),
        (["--trainer.devices", "4"], 4),
        (["--trainer.devices", "0,1,5"], 3),
        (["--trainer.devices", "[0, 1]"], 2),
        (["--trainer.devices", "4", "--trainer.num_nodes", "2"], 8),
        (["--config", "auto.yaml"], 1),  # as a run saves the trainer's default
    ],
)
def test_devices_are_those_of_all_nodes(given, devices, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "auto.yaml").write_text("trainer: {devices: auto}")
    assert Planner([*TOLD, *given]).devices == devices


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--trainer.devices", "-1"], "found -1, which does not say it: give --trainer.devices"),
        (["--trainer.devices=auto"], "found auto"),
        (["--trainer.strategy", "deepspeed"], "--trainer.strategy needs auto, ddp, fsdp2"),
        (["--trainer.devices", "0"], "--trainer.devices of at least 1"),
        (["--gpu_memory", "-3"], "--gpu_memory above 0"),
        (["--gpu_memory", "lots"], "gpu_memory needs a number; found 'lots'"),
        (["--trainer.devices", "two"], "found two, which does not say it"),
        (["--devices", "2"], "unknown argument '--devices'. Did you mean '--trainer.devices'"),
        (["--gpu-memory", "2"], "unknown argument '--gpu-memory'. Did you mean '--gpu_memory'"),
        (["--trainer.strategy", "fsdp"], "--trainer.strategy needs auto, ddp, fsdp2"),
        (["--trainer.precision", "bf16-true"], "give --model.base bfloat16"),
        (["--model.bank", "x"], "bank"),
        (["--model.lr", "-1"], "ESD needs lr of at least 0; found -1.0"),
        (["--trainer.max_steps", "0"], "found --trainer.max_steps 0"),
        (["--save_every", "0"], "--save_every of at least 1"),
        (
            [
                "--model.optimizer",
                "adam8bit",
                "--trainer.devices",
                "2",
                "--trainer.strategy",
                "fsdp2",
            ],
            "adam8bit needs whole weights",
        ),
    ],
)
def test_mistakes_end_in_one_sentence(given, words, capsys):
    assert main(["plan", *TOLD, *given]) == 2
    assert words in capsys.readouterr().err


def test_a_method_is_needed(capsys):
    assert main(["plan", "--gpu_memory", "24"]) == 2
    assert "needs a method" in capsys.readouterr().err
