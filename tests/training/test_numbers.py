"""Numbers are checked where they come in."""

import inspect
import math
import pkgutil

import pytest
from trivial import Distillation, Redirection
from under_attack import tiny_target

from erasure_lightning.__main__ import main
from erasure_lightning.attacks import ATTACKS
from erasure_lightning.attacks.p4d import P4D
from erasure_lightning.attacks.runner import attack_concepts
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.checks import MAX_SEED, require, require_finite, require_seed
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import METHODS
from erasure_lightning.retention.global_alignment import GlobalSemanticAlignment
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.testing import quick_fit
from erasure_lightning.training.trajectory_bank import TrajectoryBank

NAN, INF = math.nan, math.inf
CAT = [Concept("cat", "dog")]


@pytest.mark.parametrize(
    ("bounds", "value", "words"),
    [
        ({"at_least": 1}, 0, "It needs n of at least 1; found 0."),
        ({"above": 0}, 0.0, "It needs n above 0; found 0.0."),
        ({"at_most": 1}, 2, "It needs n of at most 1; found 2."),
        ({"above": 0, "at_most": 1}, 2, "It needs n above 0 and at most 1; found 2."),
        ({"at_least": 0, "below": 1}, 1, "It needs n of at least 0 and below 1; found 1."),
        ({}, NAN, "It needs a finite n; found nan."),
        ({"at_least": 0}, INF, "It needs a finite n; found inf."),
        ({"at_most": 0}, -INF, "It needs a finite n; found -inf."),
        ({"at_least": 1}, "4", "It needs a number as n; found '4'."),
    ],
)
def test_a_number_out_of_range_is_named_with_its_range(bounds, value, words):
    with pytest.raises(ErasureError) as caught:
        require("It", **bounds, fine=None, n=value)
    assert str(caught.value) == words


def test_numbers_at_their_bounds_pass():
    require("It", at_least=0, at_most=1, zero=0, one=1.0, left_out=None)
    require("It", n=10**400)
    require_seed("It", seed=MAX_SEED)
    require_finite("It", {"text": "nan", "flag": True, "n": 1.0, "list": [NAN]})


def test_a_seed_is_a_whole_number():
    with pytest.raises(ErasureError, match=r"It needs a whole number as seed; found 1\.5"):
        require_seed("It", seed=1.5)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seeds_are_what_a_generator_takes(seed):
    words = f"needs seed of at least 0 and at most {MAX_SEED}; found {seed}"
    with pytest.raises(ErasureError, match=f"Redirection {words}"):
        Redirection(concepts=CAT, backbone=TinyBackbone(), seed=seed)
    with pytest.raises(ErasureError, match=f"P4D {words}"):
        P4D(seed=seed)


def floats(cls):
    """Arguments of a class and its bases that are decimal numbers."""
    signatures = [inspect.signature(base.__init__) for base in cls.__mro__[:-1]]
    parameters = {
        n: p for s in signatures for n, p in s.parameters.items() if "float" in str(p.annotation)
    }
    return sorted(n for n, p in parameters.items() if p.annotation in (float, float | None))


def test_the_arguments_are_found():
    assert {"lr", "eta"} <= set(floats(pkgutil.resolve_name(METHODS["ESD"].target)))


@pytest.mark.parametrize("name", METHODS)
def test_every_decimal_of_every_method_is_finite(name):
    cls = pkgutil.resolve_name(METHODS[name].target)
    for argument in floats(cls):
        for value in (NAN, INF):
            with pytest.raises(ErasureError, match=rf"needs .*\b{argument}\b.*; found .*{value}"):
                cls(concepts=CAT, backbone=TinyBackbone(), **{argument: value})


@pytest.mark.parametrize("name", ATTACKS)
def test_every_decimal_of_every_attack_is_finite(name):
    cls = pkgutil.resolve_name(ATTACKS[name].target)
    for argument in floats(cls):
        with pytest.raises(ErasureError, match=rf"needs .*\b{argument}\b.*; found nan"):
            attack_concepts(cls(**{argument: NAN}), tiny_target())


@pytest.mark.parametrize(
    "arguments",
    [
        *({"guidance": value} for value in (NAN, INF, -1.0)),
        *(
            {name: 0}
            for name in ("steps", "image_size", "image_batch_size", "batch_size", "others")
        ),
        {"steps_per_concept": 0},
        *({name: -5} for name in ("steps", "image_size")),
    ],
    ids=str,
)
def test_the_datas_numbers(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ErasureError, match=rf"PromptData needs .*{name}.*; found {value}"):
        PromptData(**arguments)


@pytest.mark.parametrize("guidance", [NAN, INF, -1.0])
def test_a_banks_guidance(guidance):
    with pytest.raises(ErasureError, match=f"TrajectoryBank needs .*guidance.*; found {guidance}"):
        TrajectoryBank(guidance=guidance)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GlobalSemanticAlignment(weight=NAN), "needs a finite weight; found nan"),
        (
            lambda: GlobalSemanticAlignment(retained_share=NAN),
            "Alignment needs a finite retained_share; found nan",
        ),
        (lambda: GlobalSemanticAlignment(temperature=INF), "needs a finite temperature; found inf"),
        (
            lambda: LocalNoisePreservation(batch_size=0),
            "Preservation needs batch_size of at least 1; found 0",
        ),
    ],
)
def test_retention_callbacks(make, words):
    with pytest.raises(ErasureError, match=words):
        quick_fit(Distillation(concepts=CAT, backbone=TinyBackbone()), 1, make())


FIT = ["fit", "--model", "trivial.Distillation", "--model.concepts", "[{name: cat, anchor: dog}]"]
FIT += [
    "--model.backbone",
    "TinyBackbone",
    "--trainer.max_steps",
    "1",
    "--trainer.accelerator",
    "cpu",
]
FIT += ["--trainer.enable_progress_bar", "false", "--measure", "false"]


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["--model.lr", ".nan"], "Distillation needs a finite lr; found nan."),
            (["--data.guidance", ".inf"], "PromptData needs a finite guidance; found inf."),
            (
                ["--hang_timeout", ".nan"],
                "Watching over the ranks needs a finite --hang_timeout; found nan.",
            ),
            (
                ["--trainer.log_every_n_steps=-1"],
                "The trainer needs log_every_n_steps of at least 0; found -1.",
            ),
            (
                ["--trainer.accumulate_grad_batches=0"],
                "The trainer needs accumulate_grad_batches of at least 1; found 0.",
            ),
            (
                ["--trainer.val_check_interval", "0"],
                "The trainer needs val_check_interval above 0; found 0.",
            ),
            (
                ["--trainer.check_val_every_n_epoch", "0"],
                "The trainer needs check_val_every_n_epoch of at least 1; found 0.",
            ),
            (
                ["--trainer.gradient_clip_val", ".nan"],
                "The trainer needs a finite gradient_clip_val; found nan.",
            ),
        ],
    )
    def test_one_line_and_exit_code_2(self, argv, words, capsys):
        assert main([*FIT, *argv]) == 2
        assert capsys.readouterr().err.strip().splitlines() == [f"erasure: error: {words}"]

    def test_purify(self, capsys):
        argv = ["purify", "no.png", "--ckpt_path", "none", "--prompt", "", "--guidance", "nan"]
        assert main(argv) == 2
        assert (
            capsys.readouterr().err
            == "erasure: error: Purification needs a finite guidance; found nan.\n"
        )

    def test_logging_switched_off(self, folder):
        assert main([*FIT, "--trainer.log_every_n_steps", "0", "--run_dir", "run"]) == 0
        assert (folder / "run/edit.safetensors").exists()
