"""Targets for attacks: a tiny model, and the emoji world with its cigarette erased by UCE."""

from functools import cache

import torch
from tiny_scorers import KnownScorer
from trivial import Redirection

from erasure_lightning.attacks.target import AttackSettings, AttackTarget
from erasure_lightning.backbones.structural_copy import copier
from erasure_lightning.backbones.text_cache import TextCache
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.methods.uce import UCE
from erasure_lightning.testing import quick_fit

CAT = [Concept("cat", "dog", domain=["bird"])]


def plain_images(target, case):
    """Images of the edited model for the case's own sentence."""
    return target.generate(target.edited.encode([case.prompt]), case.seeds)


def check_untrained(attack, **arguments):
    """Without training, the images are the plain ones; with it, they are not."""
    target = tiny_target()
    (case,) = target.cases(1)
    (result,) = attack(**arguments).run(target, 1)
    assert torch.equal(result.images, plain_images(target, case))
    (control,) = attack().run(target, 1)
    assert not torch.allclose(control.images, plain_images(target, case), atol=1e-3)


def check_repeatable(attack):
    """Equal seeds give equal images, others do not, and the edited model is not modified."""
    target = tiny_target()
    before = weights(target.edited)
    first, again, other = (attack(seed=seed).run(target, 0)[0] for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert all(torch.equal(before[n], value) for n, value in weights(target.edited).items())
    assert not any(p.grad is not None for p in target.edited.parameters())


def tiny_target(concepts=CAT, family=TinyBackbone, base_dtype="float32", **settings):
    """A tiny model whose cat is redirected to the dog; its scorer's verdicts are arbitrary."""
    edited, original = _tiny_models(family, base_dtype)()
    few = {"seeds": 2, "images": 2, "steps": 2, "guidance": 3.0}
    settings = AttackSettings(**(few | settings))
    return AttackTarget(edited, original, concepts, settings, KnownScorer())


@cache
def _tiny_models(family, base_dtype):
    """Copies of the edited model and the original, which share what the edit does not reach."""
    module = quick_fit(Redirection(concepts=CAT, backbone=family(), base_dtype=base_dtype), 1)
    tokenizers = [tower.tokenizer for tower in module.backbone.towers]
    return copier((module.backbone, module.original), tokenizers)


@cache
def _module():
    return quick_fit(UCE(backbone="emoji-world", concepts=[Concept("cigarette", "lollipop")]), 1)


def _target(edited, images, steps=10):
    module = _module()
    settings = AttackSettings(seeds=2, images=images, steps=steps)
    return AttackTarget(edited, module.original, module.concepts, settings)


def cigarette(erased=True, images=4, steps=10):
    """The emoji world after UCE, or unedited."""
    module = _module()
    return _target(module.backbone if erased else module.original, images, steps)


@cache
def _weakly_erased():
    module = _module()
    model = module.original.frozen_copy(module.editable())
    for name, new in module.editable().items():
        weight = model.get_parameter(name)
        weight.data = torch.lerp(weight, new.detach(), 0.8)
    return model


def weakly_erased(images=2):
    """The emoji world after 0.8 of UCE's edit, where plain prompts just fail."""
    return _target(_weakly_erased(), images)


def filtered(word, anchor, images=2):
    """The emoji world with a filter that replaces prompts with a word: no erasure at all."""
    original = _module().original
    model = original.frozen_copy(())

    def replaced(prompt):
        return f"a {anchor}" if word in getattr(prompt, "text", prompt) else prompt

    model._text_cache = TextCache(
        model.text_encoders
    )  # the copy shares the original's, whose states are unfiltered
    model.embed = lambda prompts: original.embed([replaced(prompt) for prompt in prompts])
    return _target(model, images)


def weights(model):
    """A copy of all parameters and buffers, by name."""
    return {name: value.clone() for name, value in model.state_dict().items()}
