"""Fits methods on two ranks, as torchrun starts it: ``torchrun --nproc-per-node 2 fits.py OUT STRATEGY METHOD...``.

Rank 0 writes what came out into ``OUT/STRATEGY-METHOD.pt``; a method that fails leaves its traceback there instead.
"""

import sys
import traceback
import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from torch import distributed

from erasure_lightning import sharding
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts import Concept
from erasure_lightning.methods import METHODS
from erasure_lightning.registry import find_method, load_offer
from erasure_lightning.sharding import whole
from erasure_lightning.strategies import FSDP2
from erasure_lightning.testing import edit_of, fit

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
STEPS = 4


class Watch(Callback):
    """Remembers what a rank's first step was about, and what the optimizer was given."""

    def setup(self, trainer, module, stage):
        self.seen, self.gradients = None, {}
        loss = getattr(module, "erasure_loss", None)

        def watched(x, t, batch):
            self.seen = self.seen or (x.detach().clone(), t.clone(), batch._asdict())
            return loss(x, t, batch)

        if loss is not None:
            module.erasure_loss = watched

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if not self.gradients:
            found = module.trainable() if hasattr(module, "erasure_loss") else {}
            self.gradients = {n: whole(p.grad).clone() for n, p in found.items() if p.grad is not None}


def method(name):
    """A method's class."""
    return load_offer(find_method(name))


def made(name):
    """A method on `TinyBackbone`, as cheap as it gets."""
    cheap = {
        "MACE": {"pictures": 1, "steps": 2},
        "CA": {"pictures": 2, "steps": 2},
        "SalUn": {"pictures": 2, "steps": 2},
    }
    return method(name)(concepts=CONCEPTS, backbone=TinyBackbone(), seed=1, **cheap.get(name, {}))


def chosen(strategy, name):
    """As the command line chooses it."""
    if strategy == "fsdp2":
        return FSDP2()
    return "ddp_find_unused_parameters_true" if method(name).rests else "ddp"


def fits(name, strategy, out):
    """What a method does on these ranks."""
    given = {"devices": 2}
    watch, module = Watch(), made(name)
    fit(module, STEPS, watch, strategy=chosen(strategy, name), **given)
    edit = edit_of(module)
    half, whole_run = out / f"{strategy}-{name}-half.ckpt", out / f"{strategy}-{name}-whole.ckpt"
    fit(made(name), STEPS // 2, total=STEPS, save=half, strategy=chosen(strategy, name), **given)
    resumed = fit(made(name), STEPS, resume=half, save=whole_run, strategy=chosen(strategy, name), **given)
    split = [
        n
        for n, p in module.backbone.named_parameters()
        if type(p).__name__ == "DTensor" or "DTensor" in str(type(p.data))
    ]
    mine = {"edit": edit, "resumed": edit_of(resumed), "seen": watch.seen, "gradients": watch.gradients, "split": split}
    ranks = [None, None]
    distributed.all_gather_object(ranks, mine)
    return ranks


def main(out, strategy, names):
    sharding.LEAST = 1  # the tiny model has nothing larger
    warnings.simplefilter("ignore")
    for name in names:
        try:
            found = fits(name, strategy, out)
        except BaseException:
            found = traceback.format_exc()
            print(f"{strategy} {name}: {found}", file=sys.stderr)
            torch.save(found, out / f"{strategy}-{name}.pt")
            raise
        if distributed.get_rank() == 0:
            torch.save(found, out / f"{strategy}-{name}.pt")
            print(f"{strategy} {name}: fitted", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] or list(METHODS))
