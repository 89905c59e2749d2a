"""A plan whose equal blocks are run once, against the plan of all their operations."""

import copy
from contextlib import nullcontext
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from erasure_lightning.backbones.checkpointing import checkpoint_blocks
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.methods.esd import ESD
from erasure_lightning.planning.forecast import forecast_fit
from erasure_lightning.planning.memory_tracker import MemoryTracker, shapes, without_values
from erasure_lightning.planning.repeated_blocks import RepeatedBlocks
from erasure_lightning.retention.local_noise import LocalNoisePreservation


class Blocks(nn.Module):
    """Six blocks, the last of which is larger, and a layer after them."""

    _no_split_modules = ("TransformerEncoderLayer",)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, width, dropout=0.0, batch_first=True)
            for width in (64, 64, 64, 64, 64, 96)
        )
        self.out = nn.Linear(16, 16)

    def forward(self, x, checkpointing=False):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if checkpointing else block(x)
        return self.out(x)


def timeline(model, trained, checkpointing, blocks):
    """Peaks and bytes after an evaluation, and after two forwards, backwards and updates."""
    mode = shapes()
    without_values(model, torch.float32, mode)
    for name, weight in model.named_parameters():
        weight.requires_grad_(trained in name)
    memory = MemoryTracker()
    repeated = RepeatedBlocks(memory)
    marks = []
    with memory, repeated.replaced([model]) if blocks else nullcontext():
        memory.hold(model.parameters())
        with mode:
            x = torch.empty(2, 50, 16)
        with torch.no_grad():
            model(x)
        marks.append((memory.restart(), memory.live))
        optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
        for _ in range(2):
            loss = model(x, checkpointing).square().mean()
            forward = memory.restart()
            weights = [p for p in model.parameters() if p.requires_grad]
            torch.autograd.grad(loss, weights, retain_graph=True)
            marks.append((memory.restart(), memory.live))
            loss.backward()
            del loss
            marks.append((forward, memory.live))
            marks.append((memory.restart(), memory.live))
            optimizer.step()
            marks.append((memory.restart(), memory.live))
            optimizer.zero_grad()
    return marks, len(repeated._known)


@pytest.mark.parametrize("trained", ["", "linear1"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_block_takes_the_memory_of_its_operations(trained, checkpointing):
    quick, kinds = timeline(Blocks(), trained, checkpointing, blocks=True)
    whole, none = timeline(Blocks(), trained, checkpointing, blocks=False)
    assert quick == [pytest.approx(mark, abs=8) for mark in whole]  # a scalar and its gradient
    # Without gradient, with a gradient of the input and without, for each width at most.
    assert (none, 0 < kinds <= 5) == (0, True)


def test_blocks_with_hooks_run_as_they_are():
    model = Blocks()
    seen = []
    model.blocks[1].linear1.register_forward_hook(lambda *_: seen.append(1))
    timeline(model, "", False, blocks=True)
    assert len(seen) == 3


def test_a_text_encoder_s_own_checkpoints_remain():
    def run(blocks):
        model = TinyBackbone()
        without_values(model, torch.float32, shapes())
        checkpoint_blocks(model.denoiser, model.text_encoders)
        for name, weight in model.text_encoders.named_parameters():
            weight.requires_grad_("layers" in name)
        memory = MemoryTracker()
        context = (
            RepeatedBlocks(memory).replaced([model.text_encoders]) if blocks else nullcontext()
        )
        with memory, context:
            memory.hold(model.parameters())
            loss = model.encode(["a cat", "a dog"]).tokens.square().mean()
            marks = (memory.restart(), memory.live)
            loss.backward()
            return *marks, memory.restart(), memory.live

    assert run(blocks=True) == pytest.approx(run(blocks=False), abs=8)


def deep(build):
    """A tiny model whose denoiser and text encoders have three more blocks of each kind."""
    model = build()
    for part in (model.denoiser, model.text_encoders):
        for blocks in part.modules():
            if type(blocks) is nn.ModuleList and "Block" in type(blocks[0]).__name__:
                blocks.extend(copy.deepcopy(blocks[0]) for _ in range(3))
    return model


def plan(model, *callbacks, **arguments):
    module = ESD(concepts=[Concept("cat", "dog")], backbone=model, **arguments)
    data = PromptData(batch_size=2)
    return asdict(forecast_fit(module, data, callbacks, measure=False, max_steps=3))


@pytest.mark.parametrize(
    ("build", "retained", "arguments"),
    [
        (lambda: deep(TinyFlux), [], {"rank": 2, "checkpointing": True, "base_dtype": "bfloat16"}),
        (TinyBackbone, ["a car"], {}),  # whose gradients are logged apart, from a graph that stays
    ],
)
def test_a_plan_is_that_of_all_operations(build, retained, arguments, monkeypatch):
    def forecast():
        callbacks = [LocalNoisePreservation(prompts=retained)] if retained else []
        return plan(build(), *callbacks, **arguments)

    quick = forecast()
    monkeypatch.setattr(RepeatedBlocks, "replaced", lambda *_: nullcontext())
    whole = forecast()
    assert quick.pop("peaks") == pytest.approx(whole.pop("peaks"), rel=0.001)
    assert quick == whole
