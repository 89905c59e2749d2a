"""AGE: the contract, the mixture, both turns of a step, and the erasure itself."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from erasure_lightning_age.age import AGE

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.errors import ErasureError
from erasure_lightning.registry import METHOD, find_offer, load_offer
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.latent_sources import NoisyBatch, Teacher
from erasure_lightning.training.trajectory_bank import TrajectoryBank

BATCH = PromptBatch(["a {}", "the {}"], ["cat", "star"], ["", ""], [0, 1])
CONCEPTS = [Concept("cat"), Concept("star")]

#: Numbers of the shipped config, on the tiny model.
ARGUMENTS = {"closest": 60, "centres": 20, "target_lr": 1e-2, "lr": 1e-3, "schedule": "cosine"}


def age(**arguments):
    module = AGE(concepts=CONCEPTS, backbone=TinyBackbone(), **(ARGUMENTS | arguments))
    module.configure_model()
    module.on_train_start()
    return module


def at(module):
    x, t = LATENTS
    return NoisyBatch(x, t, BATCH, Teacher(module.original, x, t, BATCH))


def spoiled(module):
    """The student somewhere else than the original."""
    for parameter in module.editable().values():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return module


LATENTS = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])
FREE = torch.randn(2, 4, 8, 8), torch.tensor([300.0, 700.0])


def by_hand(batch, free, times, target, module):
    """The official objective of the mixture, in clean latents: its first term has no gradient."""
    model, original = module.backbone, module.original
    before = original.denoise(free, times, target).detach()
    a = model.process.alpha(times).view(-1, 1, 1, 1)
    gap = ((1 - a) / a * (model.denoise(free, times, target) - before).square()).mean()
    return module.preserve_scale * gap


@pytest.mark.parametrize(
    "arguments",
    [{}, {"top": 1, "train": "x-strict", "ascent": "full"}, {"target_lr": 0.0}],
    ids=str,
)
def test_contract(arguments, tmp_path):
    few = tmp_path / "words.txt"  # the world has some hundreds
    few.write_text("tree\ncar\nboat\nbird\nfish\nhouse\n")
    settings = ARGUMENTS | {"latents": TrajectoryBank(2, 3), "vocabulary": str(few)} | arguments
    check_method(AGE, thorough=not arguments, **settings)


def test_it_is_announced_by_its_package():
    entry = find_offer(METHOD, "age")
    assert load_offer(entry) is AGE
    assert entry.package == "erasure-lightning-age 0.1.0"


class TestMixture:
    def test_a_single_word_is_a_row_of_the_vocabulary(self):
        module = age(top=1)
        for row, targets in zip(
            module.mixture(at(module)).tokens, module.words.candidates, strict=True
        ):
            assert any(
                torch.allclose(row, word, atol=1e-6) for word in module.words.table.tokens[targets]
            )

    @pytest.mark.parametrize("top", [1, 2])
    def test_its_weights_have_a_gradient(self, top):
        module = age(top=top)
        tokens = module.mixture(at(module)).tokens
        value = (tokens * torch.randn_like(tokens)).sum()
        (gradient,) = torch.autograd.grad(value, module.words.logits)
        assert gradient.abs().amax(dim=1).min() > 1e-3  # more than rounding, for each concept

    def test_it_leaves_the_start_alone(self):
        module = age()
        start = module.original.encode(["a cat"]).tokens[0, 0]
        assert torch.allclose(
            module.mixture(at(module)).tokens[:, 0], start.expand(2, -1), atol=1e-5
        )

    def test_targets_are_near_and_none_is_erased(self):
        module = age(closest=3, centres=3)
        words = Vocabulary(module.backbone.world, module.concepts).others
        state, states = (module.original.encode(each).tokens for each in (["cat"], words))
        distances = (states - state).flatten(1).norm(dim=1)
        targets = module.words.table.tokens[module.words.candidates[0]]
        assert torch.equal(targets, states[distances.argsort()[:3]])
        assert distances.min() > 0  # the cat itself is no target

    def test_by_default_it_moves_by_the_students_side_of_the_drift_alone(self):
        """As in the official code; by hand, with the original's side detached."""
        module = spoiled(age(preserve_scale=2.0))
        gradients = []
        for objective in (module.mixture_objective, partial(by_hand, module=module)):
            torch.manual_seed(1)
            value = objective(at(module), *FREE, module.mixture(at(module)))
            gradients.append(torch.autograd.grad(value, module.words.logits)[0])
        assert torch.allclose(*gradients, rtol=1e-4)
        module.ascent = "full"  # the control
        torch.manual_seed(1)
        value = module.mixture_objective(at(module), *FREE, module.mixture(at(module)))
        (gradient,) = torch.autograd.grad(value, module.words.logits)
        assert not torch.allclose(gradient, gradients[0], rtol=1e-2)

    def test_both_terms_of_the_full_harm_reach_it(self):
        for module in age(preserve_scale=0.0, ascent="full"), spoiled(age(ascent="full")):
            value = module.mixture_objective(at(module), *FREE, module.mixture(at(module)))
            assert torch.autograd.grad(value, module.words.logits)[0].abs().max() > 0
        # The control: the first term has no gradient in the official code.
        module = age(preserve_scale=0.0)
        value = module.mixture_objective(at(module), *FREE, module.mixture(at(module)))
        assert torch.autograd.grad(value, module.words.logits)[0].abs().max() == 0

    def test_a_step_moves_it_uphill(self):
        module = spoiled(age(target_lr=0.5, temperature=0.5, ascent="full"))
        torch.manual_seed(0)
        before = module.mixture_objective(at(module), *FREE, module.mixture(at(module)))
        for _ in range(10):
            torch.manual_seed(0)
            module.words.ascend(
                module.mixture_objective(at(module), *FREE, module.mixture(at(module)))
            )
        torch.manual_seed(0)
        assert module.mixture_objective(at(module), *FREE, module.mixture(at(module))) > before


def test_the_loss_by_hand():
    """In clean latents an epsilon model's errors weigh ``(1 - a) / a``."""
    module = spoiled(age(target_lr=0.0, top=1, closest=1, centres=1, preserve_scale=0.0, eta=0.5))
    x, t = LATENTS
    target = module.mixture(at(module))
    mixed = module.original.denoise(x, t, target)
    concept, student = (
        m.denoise(x, t, m.encode(BATCH.prompts)) for m in (module.original, module.backbone)
    )
    a = module.backbone.process.alpha(t).view(-1, 1, 1, 1)
    by_hand = ((1 - a) / a * (student - (mixed - 0.5 * (concept - mixed))).square()).mean()
    assert torch.allclose(module.erasure_loss(at(module)), by_hand, rtol=1e-4)


def test_a_step_on_the_mixture_leaves_no_gradient_in_the_weights():
    module = spoiled(age())
    module.erasure_loss(at(module))
    assert all(parameter.grad is None for parameter in module.editable().values())


def test_arguments_out_of_range():
    with pytest.raises(ErasureError, match="AGE needs top of at least 1"):
        AGE(concepts=CONCEPTS, backbone=TinyBackbone(), top=0)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world():
    pytest.importorskip("erasure_lightning_emoji_world")
    config = yaml.safe_load(
        (Path(__file__).parents[1] / "erasure_lightning_age/configs/age.yaml").read_text()
    )
    assert config["model"]["class_path"] == "AGE"
    bank = TrajectoryBank(trajectories=4, steps=10)
    settings = ARGUMENTS | {"lr": 2e-4}
    module = quick_fit(
        AGE(
            backbone="emoji-world",
            concepts=[Concept("cigarette", domain=["smoking", "tobacco"])],
            latents=bank,
            **settings,
        ),
        15,
    )

    def gap(prompt):
        now, then = (
            model.denoise(x, t, model.encode([prompt]).expand(4))
            for model in (module.backbone, module.original)
        )
        return (now - then).square().mean()

    x, t = module.backbone.noise(range(4)), torch.tensor([300.0, 500.0, 700.0, 900.0])
    with torch.no_grad():
        assert gap("a cigarette") > 3 * gap("a dog")
