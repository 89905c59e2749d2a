"""Methods on a flow transformer, and the faults of public implementations, each put in and found.

The faults: closed-form targets with the layers' biases; an unconditional prediction that keeps the
concept's pooled vector; a teacher that is the student; another prompt than the concept's; a time
that is not that of the latents; an embedded guidance scale in predictions that a loss compares.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import CONCEPT, TEMPLATE
from erasure_lightning.backbones.flux import Flux
from erasure_lightning.backbones.tiny import TinyFlux, TinySD3
from erasure_lightning.concepts.concept import Concept, Phrase, PromptBatch
from erasure_lightning.diffusion.sampling import guided_predictor
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.methods.uce import UCE
from erasure_lightning.testing import check_method
from erasure_lightning.training import closed_form
from erasure_lightning.training.latent_sources import (
    NoisyBatch,
    PureNoise,
    SourceModels,
    pure_noise,
)
from erasure_lightning.training.regression import Regression
from erasure_lightning.training.trajectory_bank import TrajectoryBank

FAMILIES = [TinyFlux, TinySD3]
CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
BATCH = PromptBatch(["a {}", "the {}"], ["cat", "star"], ["dog", "heart"], [0, 1])
PRESERVED = ["tree", "boat"]


class Broken(Exception):
    """Raised by the checks below; an `AssertionError` could be one of pytest's own."""


def expect(condition, promise):
    if not condition:
        raise Broken(promise)


def make(method, family, **arguments):
    module = method(concepts=CONCEPTS, backbone=family(), seed=1, **arguments)
    module.configure_model()
    return module


def check_closed_form(family):
    """Where concepts' last tokens arrive, and what is preserved."""
    module = make(UCE, family, ridge=1e-9, preserve=PRESERVED)
    module.write(module.solve())
    for source, edited in zip(
        module.original.text_inputs(), module.backbone.text_inputs(), strict=True
    ):
        for old, new in zip(source.layers.values(), edited.layers.values(), strict=True):
            for words, targets in (("cat", "dog"), ("star", "heart"), ("tree", "tree")):
                inputs, images = (_last(module.original, source, w) for w in (words, targets))
                expect(
                    torch.allclose(new(inputs), old(images), atol=1e-3),
                    f"{words} arrives where the original has {targets}",
                )


def _last(model, source, words):
    """The inputs of a layer that reads the pooled vector, or the words' token in each segment."""
    states = model.encode([Phrase(words, 0, len(words))])
    rows = source.rows(states)
    return rows[0] if source.source == "pooled" else rows[states.positions(CONCEPT)]


def with_biases(module, fill, ridge):
    """The solution whose targets are outputs ``W a + b``, while the layers keep their biases."""
    solution = {}
    for source in module.original.text_inputs():
        equations = Recorded(module.retention_gram(source))
        fill(equations, source)
        keys = torch.cat(equations.rows).sum(dim=0, keepdim=True)
        step = equations._times_inverse(keys, ridge).float()
        layers = source.layers.values()
        solved = equations.solve(source.weights(), ridge)
        solved = [w + layer.bias[:, None] * step for w, layer in zip(solved, layers, strict=True)]
        solution |= source.named(solved)
    return solution


class Recorded(Regression):
    """Equations that record the inputs that they map."""

    def __init__(self, gram):
        super().__init__(gram)
        self.rows = []

    def redirect(self, sources, images, weight=1.0):
        self.rows.append(sources.double())
        super().redirect(sources, images, weight)

    def keep(self, rows, weight=1.0):
        self.rows.append(rows.double())
        super().keep(rows, weight)


def check_esd(family):
    """ESD's loss by hand: a fresh model as teacher, prompts spelled out, no embedded guidance."""
    torch.manual_seed(5)
    module = make(ESD, family)
    with torch.no_grad():
        for parameter in module.editable().values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch = module.noisy_batch(BATCH)
    teacher = family()

    @torch.no_grad()
    def predict(model, *prompts):
        return model.denoise(batch.x, batch.t, model.encode(prompts), guidance=1.0)

    concept = predict(teacher, "a cat", "the star")
    unconditional = predict(teacher, "", "")
    target = unconditional - (concept - unconditional)
    by_hand = mse_loss(predict(module.backbone, "a cat", "the star"), target)
    expect(torch.allclose(module.erasure_loss(batch), by_hand, rtol=1e-4), "the loss by hand")


def check_times(family):
    """Latents have the noise of their times, and trajectories the sampler's."""
    model = family()
    torch.manual_seed(5)
    many = PromptBatch(["a {}"] * 16, ["cat"] * 16, ["dog"] * 16, [0] * 16)
    models = SourceModels(model, model, lambda count, number: many, 1, 5)
    batch = PureNoise().draw(many, models)
    share = batch.x.flatten(1).std(dim=1) / model.process.share(batch.t)
    expect(((share - 1).abs() < 0.25).all(), "as much noise as the time has")

    bank = TrajectoryBank(2, 3)
    bank.update(models)
    rows = torch.arange(2)
    now, then = (bank.at(rows, torch.full((2,), i), model) for i in (0, 1))
    expect(torch.equal(now.t, model.sampler(3).times[:1].expand(2)), "the sampler's time")
    conditioning = model.encode(bank.sentences.prompts[:2])
    with torch.no_grad():
        velocity = guided_predictor(model, conditioning, bank.guidance)(now.x, now.t[0]).guided
    step = ((then.t - now.t) / model.process.scale).view(-1, 1, 1, 1)
    expect(torch.allclose(then.x, now.x + step * velocity, atol=1e-4), "a step of the flow")


CHECKS = [check_closed_form, check_esd, check_times]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", CHECKS)
def test_ours_pass(family, check):
    check(family)


def doubled_bias(patch):
    patch.setattr(closed_form, "solve_text_inputs", with_biases)


def unconditional_with_the_concepts_pooled_vector(patch):
    empty = Backbone.unconditional

    def faulty(self, count=1):
        pooled = self.encode(["a cat"]).pooled.expand(count, -1)
        return type(states := empty(self, count))(**(vars(states) | {"pooled": pooled}))

    patch.setattr(Backbone, "unconditional", faulty)


def teacher_is_the_student(patch):
    patch.setattr(Backbone, "frozen_copy", lambda self, edited: self)


def students_prompt_is_the_anchors(patch):
    patch.setattr(NoisyBatch, "prompts", property(lambda self: self.sentences.anchor_prompts))


def guidance_of_sampling(patch):
    plain = Flux.denoise

    def faulty(self, x, t, conditioning, guidance=None):
        return plain(self, x, t, conditioning, 3.5 if guidance is None else guidance)

    patch.setattr(Flux, "denoise", faulty)


def time_of_other_latents(patch):
    def faulty(backbone, count, times="uniform"):
        x, t = pure_noise(backbone, count, times)
        return x, t.roll(1)

    patch.setattr("erasure_lightning.training.latent_sources.pure_noise", faulty)


def time_of_the_next_step(patch):
    roll_out = TrajectoryBank._roll_out

    def faulty(self, *arguments):
        held = roll_out(self, *arguments)
        return held | {"t": held["t"].roll(-1, dims=1)}

    patch.setattr(TrajectoryBank, "_roll_out", faulty)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (doubled_bias, check_closed_form),
        (unconditional_with_the_concepts_pooled_vector, check_esd),
        (teacher_is_the_student, check_esd),
        (students_prompt_is_the_anchors, check_esd),
        (time_of_other_latents, check_times),
        (time_of_the_next_step, check_times),
    ],
    ids=lambda function: function.__name__,
)
def test_a_fault_is_found(monkeypatch, family, fault, check):
    fault(monkeypatch)
    with pytest.raises(Broken):
        check(family)


def test_an_embedded_scale_of_sampling_is_found(monkeypatch):
    guidance_of_sampling(monkeypatch)
    with pytest.raises(Broken):
        check_esd(TinyFlux)


class TestSage:
    @pytest.mark.parametrize("train", ["cross_attention", "text_entry", "joint_attention"])
    def test_contract_of_parts_of_the_denoiser(self, train):
        check_method(
            SAGE,
            families=[TinyFlux],
            thorough=False,
            steps=2,
            world=None,
            lr=1e-2,
            train=train,
            erase_space="noise",
            check_from=0,
            check_steps=1,
        )

    def test_joint_attention_is_trained_with_the_entry(self):
        module = make(SAGE, TinyFlux, train="joint_attention", erase_space="noise")
        names = module.editable().keys()
        assert "denoiser.context_embedder.weight" in names
        assert "denoiser.time_text_embed.text_embedder.linear_1.bias" in names
        assert "denoiser.transformer_blocks.0.attn.add_v_proj.weight" in names
        assert "denoiser.single_transformer_blocks.0.attn.to_k.weight" in names

    def test_the_text_towers_are_trained_as_far_as_they_are_read(self):
        module = make(SAGE, TinyFlux)
        conditioning = module.backbone.encode(["a cat"])
        loss = conditioning.tokens.square().mean() + conditioning.pooled.square().mean()
        loss.backward()
        parameters = module.trainable()
        assert {name.split(".")[1] for name in parameters} == {"0", "1"}
        assert all(p.grad is not None for p in parameters.values())

    def test_the_self_check_moves_words_of_both_towers(self):
        torch.manual_seed(4)
        module = make(SAGE, TinyFlux)
        with torch.no_grad():
            for parameter in module.editable().values():
                parameter.add_(0.2 * torch.randn_like(parameter))
        concept = module.backbone.embed(BATCH.prompts)
        batch = module.noisy_batch(BATCH)
        checked = module.self_check(concept, batch)
        for before, after in zip(concept, checked, strict=True):
            template = before.positions(TEMPLATE)
            moved = (after.embeddings - before.embeddings).abs().amax(dim=2)
            assert (moved[template] > 0).any()
            assert moved[~template].max() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_the_entries_have_biases_for_a_fault_to_double(family):
    layers = [layer for source in family().text_inputs() for layer in source.layers.values()]
    assert all(isinstance(layer, nn.Linear) and layer.bias.abs().max() > 1e-2 for layer in layers)
