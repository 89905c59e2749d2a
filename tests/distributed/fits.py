"""Fits methods on two ranks by DDP and by FSDP2, in processes that torchrun starts.

What each rank saw is written to ``OUT/STRATEGY-METHOD-RANK.pt``.
"""

import warnings
from copy import deepcopy
from itertools import product
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from loaded_once import copies_of_one
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from erasure_lightning.backbones.tiny_parts import TINY_WORDS
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.distributed import scattering
from erasure_lightning.distributed.collectives import average_gradients
from erasure_lightning.distributed.fsdp import full_tensor, shard_weights
from erasure_lightning.distributed.scattering import scatter_weights
from erasure_lightning.methods import METHODS
from erasure_lightning.registry import METHOD, find_offer, load_offer
from erasure_lightning.retention.global_alignment import GlobalSemanticAlignment
from erasure_lightning.testing import edit_of, quick_fit
from erasure_lightning.training import base as base
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.stochastic_trajectories import StochasticTrajectories
from erasure_lightning.training.strategies import FSDP2, register_strategies
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
STEPS = 2
#: Methods whose loss draws nothing of its own in the first step, so that it can be taken again.
PLAIN = ("ESD", "AllButOne", "SDD", "SAGE")
#: Methods whose checkpoints hold more than an edit and an optimizer's state, and one more.
STOPPED = ("ESD", "RealEra", "MACE", "SDD", "SalUn", "Receler")
#: Methods whose gradients are split by FSDP2, and whole.
CLIPPED = ("ESD", "SPM")
CLIP = 1e-3
CHEAP = {
    "ESD": {"latents": TrajectoryBank(trajectories=2, steps=2)},
    "MACE": {"latents": GeneratedImages(images=1, steps=2)},
    "CA": {"latents": GeneratedImages(images=2, steps=2, of="anchor")},
    "SalUn": {"latents": GeneratedImages(images=2, steps=2), "remaining": 2},
    "ANT": {"maps": 1},
    "EraseAnything": {"latents": TrajectoryBank(trajectories=2, steps=2)},
    "EraseFlow": {"latents": StochasticTrajectories(trajectories=2, steps=3, early=1, late=1)},
    "GLoCE": {"images": 1, "rollout_steps": 2},
    "FMN": {"latents": GeneratedImages(images=1, steps=2), "inversion_steps": 1},
    "Receler": {"attack_steps": 1},
    "AdvUnlearn": {"attack_from": 0, "attack_steps": 1},
}


class Watch(Callback):
    """Remembers what a rank's first step was about, and the gradients of a method in `PLAIN`."""

    def setup(self, trainer, module, stage):
        self.seen = None
        self.gradients = {}
        self.begun = None
        if isinstance(module, GradientErasure):
            loss = module.erasure_loss

            def watched(batch):
                self.seen = self.seen or (
                    batch.x.detach().clone(),
                    batch.t.clone(),
                    batch.sentences,
                )
                return loss(batch)

            module.erasure_loss = watched

    def on_train_start(self, trainer, module):
        self.begun = edit_of(module)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if not self.gradients and type(module).__name__ in PLAIN:
            named = module.trainable().items()
            self.gradients = {
                n: full_tensor(p.grad).clone() for n, p in named if p.grad is not None
            }


class GradientNorm(Callback):
    """Norm of the whole gradient before and after it is clipped."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.before = self._norm(module)

    def on_train_batch_end(self, trainer, module, *_):
        self.after = self._norm(module)

    def _norm(self, module):
        parameters = module.trainable().values()
        return torch.stack([full_tensor(p.grad).norm() for p in parameters]).norm().item()


class SaveHalf(Callback):
    """Saves a checkpoint half-way, with which a run that is killed there would go on."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == STEPS // 2:
            trainer.save_checkpoint(self.path)


def method(name):
    """A method's class."""
    return load_offer(find_offer(METHOD, name))


def build(name, backbone, **arguments):
    """A method on a tiny model, or the folder of one, as cheap as it gets."""
    return method(name)(
        concepts=CONCEPTS,
        backbone=str(backbone) if isinstance(backbone, Path) else backbone,
        seed=1,
        **deepcopy(CHEAP.get(name, {})),
        **arguments,
    )


def fits(name, strategy, out):
    """What a method does on this rank."""

    def run(*callbacks, **arguments):
        return quick_fit(
            build(name, out / "tiny"), *callbacks, devices=2, strategy=strategy, **arguments
        )

    register_strategies(method(name).has_unused)

    watch = Watch()
    half = out / f"{strategy}-{name}-half.ckpt"
    if name in STOPPED:
        module = run(STEPS, watch, SaveHalf(half))
    else:
        module = run(STEPS if name == "SAGE" else 1, watch)
    split = [n for n, p in module.backbone.named_parameters() if isinstance(p, DTensor)]
    results = {
        "edit": edit_of(module),
        "seen": watch.seen,
        "gradients": watch.gradients,
        "split": split,
    }
    if strategy == "fsdp2" and name in ("ESD", "SAGE"):
        thrifty = build(name, out / "tiny", checkpointing=True)
        results["checkpointed"] = edit_of(quick_fit(thrifty, STEPS, devices=2, strategy=FSDP2()))
    if name in CLIPPED:
        norm = GradientNorm()
        run(1, norm, gradient_clip_val=CLIP)
        results["norms"] = norm.before, norm.after
    if name in STOPPED:
        results["resumed"] = edit_of(run(STEPS, resume=half))
    if (alone := out / f"alone-{name}-half.ckpt").exists():
        watch = Watch()
        results["from one"] = {
            "end": edit_of(run(STEPS, watch, resume=alone)),
            "begun": watch.begun,
        }
    if strategy == "ddp" and name == "SAGE":
        results["related"] = related(
            module, [0, 1, 2] if distributed.get_rank() == 0 else [3, 4, 5]
        )
    return results


def related(module, rows):
    """Slopes of the relations between prompts by number, on the ranks there are."""
    callback = GlobalSemanticAlignment(
        mode="self", prompts=[f"a {word}" for word in TINY_WORDS[14:]]
    )
    callback.retained = callback.prompts
    callback.draw = lambda count: rows
    callback.prepare(module)
    module.zero_grad()
    callback.term(module).backward()
    trained = module.trainable()
    average_gradients(list(trained.values()))
    return {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}


def uneven():
    """Weights of the first rank, and what all ranks have when their rows are split unevenly."""
    with torch.device("meta" if distributed.get_rank() else "cpu"):
        linear = torch.nn.Sequential(torch.nn.Linear(64, 65), torch.nn.Linear(65, 65))
        model = torch.nn.ModuleList([linear, torch.nn.LayerNorm(3)])
    full = {name: value.detach().clone() for name, value in model.named_parameters()}
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    shard_weights(linear, [linear], mesh, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scattering, "_BUCKET", 66 * 65)  # a layer
        scatter_weights(model, {} if distributed.get_rank() else full, torch.device("cpu"))
    return full, {name: full_tensor(value) for name, value in model.named_parameters()}


def main(out):
    """Fit them one after the other."""
    warnings.simplefilter("ignore")
    loaded = []
    read = copies_of_one(base.load_backbone)
    base.load_backbone = lambda *arguments: loaded.append(arguments[2] != "all") or read(*arguments)
    for strategy, name in product(("ddp", "fsdp2"), METHODS):
        seen = fits(name, strategy, out)
        seen["empty"] = loaded.pop()
        torch.save(seen, out / f"{strategy}-{name}-{distributed.get_rank()}.pt")
    torch.save(uneven(), out / f"uneven-{distributed.get_rank()}.pt")
    for strategy in ("ddp", "fsdp2"):
        register_strategies(method("MACE").has_unused)
        few = build("MACE", out / "flux", image_size=64)  # a FLUX pipeline has 1024 pixels
        module = quick_fit(few, 1, devices=2, strategy=strategy)
        edit = edit_of(module)
        if distributed.get_rank() == 0:
            torch.save(edit, out / f"{strategy}-flux.pt")
