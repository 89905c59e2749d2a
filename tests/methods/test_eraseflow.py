"""EraseFlow: the contract, its loss by hand in both forms, and whose likelihood rises."""

import pytest
import torch
from contracts import VARIANT
from torch import nn

from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.eraseflow import EraseFlow
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.latent_sources import PureNoise
from erasure_lightning.training.stochastic_trajectories import StochasticTrajectories

CONCEPTS = [Concept("cat", "dog"), Concept("star")]
BATCH = PromptBatch(["a {}", "the {}"], ["cat", "star"], ["dog", ""], [0, 1])


def trajectories(**arguments):
    settings = {"trajectories": 2, "steps": 5, "early": 1, "late": 2, "guidance": 3.0}
    return StochasticTrajectories(**(settings | arguments))


def erase_flow(family=TinyBackbone, moved=0.1, latents=None, **arguments):
    module = EraseFlow(
        concepts=CONCEPTS, backbone=family(), latents=latents or trajectories(), **arguments
    )
    module.configure_model()
    for parameter in module.trainable().values() if moved else ():
        nn.init.normal_(parameter, std=moved)  # so that student and original differ
    return module


@pytest.mark.parametrize("log_reward", [2.6953, None], ids=["constant", "anchor's"])
def test_contract(log_reward):
    whole = log_reward is not None
    check_method(
        EraseFlow, **({} if whole else VARIANT), latents=trajectories(), log_reward=log_reward
    )


class TestTrajectories:
    def test_a_batch_has_all_late_steps_and_random_early_ones(self):
        module = erase_flow(latents=trajectories(steps=8, early=2, late=3))
        batch = module.noisy_batch(BATCH)
        assert batch.steps == 5
        assert batch.sentences.concepts == ["cat"] * 5 + ["star"] * 5
        assert (batch.t > batch.after_t).all()
        late = batch.t.view(2, 5)[:, 2:]
        assert torch.equal(late, module.latents._held["t"][:, -3:])
        assert torch.equal(*batch.t.view(2, 5))
        assert len(set(batch.t[:5].tolist())) == 5
        early = {t for _ in range(8) for t in module.noisy_batch(BATCH).t[:2].tolist()}
        assert early == set(module.latents._held["t"][0, :-3].tolist())

    def test_one_step_s_end_is_the_next_one_s_start(self):
        held = prepared(erase_flow())._held
        assert torch.equal(held["after"][:, :-1], held["x"][:, 1:])
        assert torch.equal(held["after t"][:, :-1], held["t"][:, 1:])

    def test_they_are_the_original_s_of_the_anchor(self):
        """Its predictions in the bank, and nothing without an anchor."""
        module = erase_flow()
        held = prepared(module)._held
        for row, prompt in enumerate(["a dog", ""]):
            template = module.latents.sentences.templates[row]
            prompt = template.replace("{}", "dog") if prompt else ""
            predicted = module.original.denoise(
                held["x"][row, :1], held["t"][row, :1], module.original.encode([prompt])
            )
            assert torch.allclose(held["anchor"][row, :1], predicted, atol=1e-5)


def prepared(module):
    module.latents.update(module.models())
    return module.latents


class TestLoss:
    def densities(self, module, batch, model, prompts, eta):
        """Of the steps by torch's normal distribution, and of the noising back."""
        alpha, after_alpha = (
            model.process.alpha(t).view(-1, 1, 1, 1) for t in (batch.t, batch.after_t)
        )
        predict = lambda texts: model.denoise(batch.x, batch.t, model.encode(texts))  # noqa: E731
        unconditional = module.original.denoise(
            batch.x, batch.t, module.original.encode([""] * len(batch))
        )
        noise = unconditional + 3 * (predict(prompts) - unconditional)
        clean = (batch.x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        variance = eta**2 * (1 - after_alpha) / (1 - alpha) * (1 - alpha / after_alpha)
        mean = after_alpha.sqrt() * clean + (1 - after_alpha - variance).sqrt() * noise
        forward = torch.distributions.Normal(mean, variance.sqrt().expand_as(mean))
        ratio = alpha / after_alpha
        back_mean = ratio.sqrt() * batch.after
        backward = torch.distributions.Normal(back_mean, (1 - ratio).sqrt().expand_as(mean))
        return [
            each.flatten(1).mean(dim=1)
            for each in (forward.log_prob(batch.after), backward.log_prob(batch.x))
        ]

    @pytest.mark.parametrize("eta", [1.0, 0.6])
    def test_with_a_constant_reward_by_hand(self, eta):
        module = erase_flow(log_reward=1.5, latents=trajectories(eta=eta))
        batch = module.noisy_batch(BATCH)
        forward, backward = self.densities(module, batch, module.backbone, batch.prompts, eta)
        imbalance = (forward - backward).view(2, 3).sum(dim=1) - 1.5
        assert torch.allclose(module.erasure_loss(batch), imbalance.square().mean(), rtol=1e-3)

    @pytest.mark.parametrize("eta", [1.0, 0.6])
    def test_with_the_anchor_s_own_likelihood_by_hand(self, eta):
        module = erase_flow(log_reward=None, latents=trajectories(eta=eta))
        batch = module.noisy_batch(BATCH)
        forward, _ = self.densities(module, batch, module.backbone, batch.prompts, eta)
        prompts = batch.sentences.anchor_or_empty_prompts
        own, _ = self.densities(module, batch, module.original, prompts, eta)
        imbalance = (forward - own).view(2, 3).sum(dim=1)
        assert torch.allclose(module.erasure_loss(batch), imbalance.square().mean(), rtol=1e-3)

    @pytest.mark.parametrize("family", [TinyBackbone, TinyFlux])
    def test_it_is_0_where_the_concept_is_drawn_as_the_anchor(self, family):
        module = erase_flow(family, moved=0.0, log_reward=None)
        batch = module.noisy_batch(BATCH)
        assert module.erasure_loss(batch) > 1e-6  # the control
        as_anchor = batch.with_sentences(
            batch.sentences._replace(
                templates=[t if a else "{}" for t, a in zip(*batch.sentences[::2], strict=True)],
                concepts=batch.sentences.anchors,
            )
        )
        assert module.erasure_loss(as_anchor) < 1e-8


def test_the_anchor_s_trajectories_become_likely_for_the_concept():
    module = erase_flow(moved=0.0, log_reward=None, lr=1e-2)
    batch = module.noisy_batch(BATCH)
    before = module.log_density(batch).mean()
    module = quick_fit(module, 30)
    after = module.log_density(batch).mean()
    gap = batch.original_density.mean() - before
    assert gap > 0
    assert batch.original_density.mean() - after < 0.5 * gap


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"latents": PureNoise()}, "needs StochasticTrajectories as latents.*found PureNoise"),
        ({"log_reward": float("nan")}, "needs a finite log_reward; found nan"),
    ],
)
def test_arguments_that_do_not_suit(arguments, words):
    with pytest.raises(ErasureError, match=words):
        erase_flow(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eta": 0.0}, "needs eta above 0 and at most 1.*; found 0.0"),
        ({"late": 0}, "needs late of at least 1; found 0"),
        ({"steps": 1}, "needs steps of at least 2; found 1"),
    ],
)
def test_trajectories_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        trajectories(**arguments)
