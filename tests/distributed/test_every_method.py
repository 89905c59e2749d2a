"""Every method on two ranks of the CPU, by DDP and by FSDP2, beside what one process does."""

import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
from distributed import fits
from forks import forking
from noisy import noisy
from torch.distributed.run import main as torchrun
from torch.testing import assert_close

from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.methods import METHODS
from erasure_lightning.testing import edit_of, quick_fit
from erasure_lightning.training.closed_form import ClosedFormErasure


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder into which both ranks wrote what they saw."""
    out = tmp_path_factory.mktemp("ranks")
    TinyBackbone().to_pipeline().save_pretrained(out / "tiny")
    TinyFlux().to_pipeline().save_pretrained(out / "flux")
    quick_fit(
        fits.build("ESD", out / "tiny"), 1, total=fits.STEPS, save=out / "alone-ESD-half.ckpt"
    )
    with (
        forking(lambda argv: fits.main(Path(*argv)), out / "fits") as program,
        forking(torchrun, out / "torchrun") as launcher,
    ):
        command = [launcher, "--nproc-per-node", "2", "--standalone", "--no-python", program, out]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-6000:]
    return out


@cache
def alone(name, out):
    return edit_of(quick_fit(fits.build(name, out / "tiny"), fits.STEPS))


@pytest.mark.slow
def test_ranks(out, subtests):
    for strategy in ("ddp", "fsdp2"):
        results = {name: _ranks(strategy, name, out) for name in METHODS}
        _check_methods(strategy, results, out, subtests)
        _check_checkpoints(strategy, results["ESD"], out, subtests)

    with subtests.test("a loss that reads states within a frozen block has the same gradients"):
        ddp, fsdp2 = (torch.load(out / f"{name}-flux.pt") for name in ("ddp", "fsdp2"))
        assert_close(fsdp2, ddp, rtol=1e-5, atol=1e-7)
        start = fits.build("MACE", out / "flux")
        start.configure_model()
        assert not any(torch.allclose(ddp[n], p) for n, p in start.editable().items())

    with subtests.test("weights of the first rank are on all, also where rows are left over"):
        (full, first), (_, second) = (torch.load(out / f"uneven-{rank}.pt") for rank in range(2))
        assert_close((first, second), (full, full), rtol=0, atol=0)

    ranks = _ranks("ddp", "SAGE", out)
    with subtests.test("relations span the prompts of both ranks"):
        module = fits.build("SAGE", out / "tiny")
        module.configure_model()
        module.write(ranks[0]["edit"])
        one = fits.related(module, [*range(6)])
        half = fits.related(module, [0, 1, 2])
        assert_close(ranks[0]["related"], one, rtol=1e-4, atol=1e-9)
        assert_close(ranks[0]["related"], ranks[1]["related"], rtol=0, atol=0)
        with pytest.raises(AssertionError):  # what it would be if each rank saw its own alone
            assert_close(half, one, rtol=1e-4, atol=1e-9)


def _ranks(strategy, name, out):
    """What each rank saw."""
    files = (out / f"{strategy}-{name}-{rank}.pt" for rank in range(2))
    return [torch.load(file, weights_only=False) for file in files]


def _check_methods(strategy, results, out, subtests):
    for name, (first, second) in results.items():
        with subtests.test(
            f"{strategy}: {name} ends alike on both ranks, and where it does when it is stopped or"
            " checkpointed"
        ):
            assert_close(first["edit"], second["edit"], rtol=0, atol=0)
            assert_close(first["edit"], first.get("resumed", first["edit"]), rtol=0, atol=0)
            assert_close(first["edit"], first.get("checkpointed", first["edit"]), rtol=0, atol=0)
        with subtests.test(
            f"{strategy}: {name} reads weights where they are needed, and splits them where it"
            " should"
        ):
            assert (first["empty"], second["empty"]) == (False, strategy == "fsdp2")
            # What its gradients are taken of stays whole: of a method that trains everything, all
            # does.
            assert bool(first["split"]) == (strategy == "fsdp2" and name not in ("SalUn", "ANT"))
        if issubclass(fits.method(name), ClosedFormErasure):
            with subtests.test(f"{strategy}: {name} solves as one process does"):
                assert_close(first["edit"], alone(name, out), rtol=0, atol=0)
        else:
            with subtests.test(f"{strategy}: {name} draws its own on each rank"):
                assert not torch.equal(first["seen"][0], second["seen"][0])
    for name in fits.CLIPPED:
        with subtests.test(f"{strategy}: {name} clips the norm of the whole gradient"):
            (before, after), other = (rank["norms"] for rank in results[name])
            assert other == (before, after)
            assert before > 2 * fits.CLIP, "the control: there is something to clip"
            assert after == pytest.approx(fits.CLIP, rel=1e-2)
    for name in fits.PLAIN:
        with subtests.test(
            f"{strategy}: {name} averages what one rank with both batches would find"
        ):
            assert_close(
                results[name][0]["gradients"],
                of_both(name, out, results[name]),
                rtol=1e-4,
                atol=1e-7,
            )


def _check_checkpoints(strategy, ranks, out, subtests):
    with subtests.test(f"{strategy}: a run of one process goes on on two"):
        begun = ranks[0]["from one"]["begun"]
        saved = torch.load(out / "alone-ESD-half.ckpt", weights_only=True)["state_dict"]
        assert_close(
            begun,
            {n.removeprefix("backbone."): value for n, value in saved.items()},
            rtol=0,
            atol=0,
        )
        assert not torch.equal(
            *(next(iter(edit.values())) for edit in ranks[0]["from one"].values())
        )
    with subtests.test(f"{strategy}: a run of two processes goes on on one"):
        half = out / f"{strategy}-ESD-half.ckpt"
        resumed = quick_fit(fits.build("ESD", out / "tiny"), fits.STEPS, resume=half)
        assert resumed.trainer.global_step == fits.STEPS
        steps = {int(state["step"]) for state in resumed.trainer.optimizers[0].state.values()}
        assert steps == {fits.STEPS}, "the optimizer goes on too"


def of_both(name, out, ranks):
    """Gradients of the loss on what both ranks saw, taken by one."""
    module = fits.build(name, out / "tiny")
    module.configure_model()
    seen = [rank["seen"] for rank in ranks]
    x, t = (torch.cat([one[i] for one in seen]) for i in range(2))
    batch = PromptBatch(*([*a, *b] for a, b in zip(seen[0][2], seen[1][2], strict=True)))
    module.erasure_loss(noisy(module, x, t, batch)).backward()
    return {n: p.grad for n, p in module.trainable().items() if p.grad is not None}
