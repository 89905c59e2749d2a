import warnings

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from erasure_lightning.api.quiet import quiet
from erasure_lightning.backbones.checkpointing import (
    checkpoint_blocks,
    run_checkpointed,
    snapshot,
)
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.registry import METHOD, find_offer, load_offer
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.testing import edit_of, quick_fit
from erasure_lightning.training.image_sources import GeneratedImages

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
#: One that needs nothing, and all that stand beside blocks for the time of a forward; few images,
#: early and short attacks.
METHODS = {
    "ESD": {},
    "CA": {"latents": GeneratedImages(2, 2, of="anchor")},
    "MACE": {"latents": GeneratedImages(2, 2)},
    "SPM": {},
    "Receler": {"attack_steps": 2},
    "RealEra": {},
    "AdvUnlearn": {"attack_from": 0, "attack_steps": 2},
    "SAGE": {"check_from": 0},
}


def build(name, **arguments):
    return load_offer(find_offer(METHOD, name))(
        concepts=CONCEPTS, backbone=TinyBackbone(), seed=1, **METHODS[name], **arguments
    )


def test_a_deprecation_in_transformers_is_not_shown():
    model = TinyBackbone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet():
            checkpoint_blocks(model.denoiser, model.text_encoders)


def saved_bytes(work):
    """What a forward keeps for its backward."""
    stored = {}

    def pack(tensor):
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(stored.values())


@pytest.mark.parametrize("name", METHODS)
def test_edits_are_the_same_to_the_bit(name):
    """Through hooks and processors that have left when the backward comes."""
    plain, thrifty = (
        edit_of(
            quick_fit(build(name, checkpointing=c), 2, LocalNoisePreservation(prompts=["a car"]))
        )
        for c in (False, True)
    )
    assert all(torch.equal(plain[key], thrifty[key]) for key in plain)


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x).tanh()


def test_what_stood_beside_a_block_is_there_again():
    """The negative control is torch's own checkpoint, which computes without it."""
    block = Doubled()
    x = torch.randn(2, 3)

    def gradient(call):
        handle = block.inner.register_forward_hook(lambda *seen: seen[2] * 5)
        output = call(block, x)
        handle.remove()
        return torch.autograd.grad(output.sum(), block.inner.weight)[0]

    expected = gradient(lambda module, x: module(x))
    assert torch.equal(gradient(run_checkpointed), expected)
    assert not torch.equal(
        gradient(lambda module, x: checkpoint(module, x, use_reentrant=False)), expected
    )


def test_a_module_as_it_is_shares_its_weights_and_not_its_hooks():
    block = Doubled()
    copy = snapshot(block)
    block.inner.register_forward_hook(lambda *seen: seen[2] * 5)
    assert copy.inner.weight is block.inner.weight
    assert not copy.inner._forward_hooks
    assert type(copy) is Doubled


def test_less_is_kept_of_denoiser_and_text_encoder():
    x = torch.randn(2, 4, 8, 8)
    t = torch.tensor([100, 800])
    for edit, ask in (
        ("denoiser_parameters", lambda model, output: model.denoise(x, t, output)),
        ("text_parameters", lambda model, output: model.encode(["a cat"] * 8)),
    ):
        stored = []
        for model in (TinyBackbone(), TinyBackbone()):
            for parameter in getattr(model, edit)().values():
                parameter.requires_grad_(True)
            if stored:
                model.checkpoint()
            output = model.encode(["a cat", "a dog"])
            stored.append(
                saved_bytes(lambda model=model, output=output, ask=ask: ask(model, output))
            )
        assert stored[1] < 0.75 * stored[0]


def test_the_frozen_original_says_what_it_said():
    module = quick_fit(build("ESD", checkpointing=True), 1)
    x = torch.ones(1, 4, 8, 8)
    t = torch.tensor([5])
    plain = TinyBackbone()
    with torch.no_grad():
        output, expected = (
            model.denoise(x, t, model.encode(["a cat"])) for model in (module.original, plain)
        )
        edited = module.backbone.denoise(x, t, module.backbone.encode(["a cat"]))
    assert torch.equal(output, expected)
    assert not torch.equal(edited, expected)
