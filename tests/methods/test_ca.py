"""CA's promises: the contract, its losses by hand, the pictures it learns from, the start token, and the erasure."""

import pytest
import torch
from recognition import KEPT, recognised
from shipped import numbers

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.bank import TrajectoryBank
from erasure_lightning.concepts import Batch, Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.ca import CA
from erasure_lightning.module import GradientErasure
from erasure_lightning.testing import check_method, fit

BATCH = Batch(["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", ""])
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100, 900])
FEW = numbers("ca", pictures=4, steps=2, guidance=2.0)


def ca(prediction="epsilon", **arguments):
    concepts = [Concept("cat", "dog"), Concept("star")]
    return CA(concepts=concepts, backbone=TinyBackbone(prediction=prediction), **(FEW | arguments))


def shifted(module):
    """A module that has drawn its pictures, and whose student differs from the original."""
    fit(module, 1)
    for parameter in module.editable().values():
        parameter.data.add_(0.01)
    return module


def ask(model, x, t, prompts):
    return model.denoise(x, t, model.encode(prompts))


@pytest.mark.parametrize("arguments", [{}, {"target": "noise"}, {"prior": 1.0, "train": "all"}], ids=str)
def test_contract(arguments):
    check_method(CA, thorough=not arguments, **FEW, **arguments)


class TestLoss:
    def test_the_model_s_own_words_for_the_anchor(self):
        module = shifted(ca())
        wanted = ask(module.backbone, X, T, ["a photo of a dog", ""])
        by_hand = (ask(module.backbone, X, T, BATCH.prompts) - wanted).square().mean()
        assert torch.allclose(module.erasure_loss(X, T, BATCH), by_hand)
        frozen = ask(module.original, X, T, ["a photo of a dog", ""])  # the control: not the original's words
        assert not torch.allclose(wanted, frozen, atol=1e-3)

    @pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
    def test_noise_in_the_form_that_the_model_predicts(self, prediction):
        module = shifted(ca(prediction, target="noise"))
        torch.manual_seed(3)
        x, t, batch, target = module.noised(BATCH.concepts)
        clean = module.backbone.process.clean(target, x, t)  # what a perfect model would see is a picture
        assert all(min((picture - c).abs().max() for picture in module._gallery.latents) < 1e-2 for c in clean)
        torch.manual_seed(3)
        assert torch.equal(module.noisy_latents(BATCH)[0], x)
        by_hand = (ask(module.backbone, x, t, batch.prompts) - target).square().mean()
        assert torch.allclose(module.erasure_loss(x, t, batch), by_hand)

    def test_the_prior_is_one_more_denoising_of_the_anchor(self):
        plain, with_prior = shifted(ca()), shifted(ca(prior=0.5))
        with_prior.load_state_dict(plain.state_dict())
        torch.manual_seed(3)
        both = with_prior.erasure_loss(X, T, BATCH)
        torch.manual_seed(3)
        x, t, batch, noise = with_prior.noised(BATCH.concepts)
        denoised = (ask(with_prior.backbone, x, t, batch.alternatives) - noise).square().mean()
        assert torch.allclose(both, plain.erasure_loss(X, T, BATCH) + 0.5 * denoised)


class TestPictures:
    def test_they_are_of_the_anchor_s_sentences_and_of_the_empty_prompt_without_anchor(self, monkeypatch):
        asked = []
        pictures = torch.zeros(4, 4, 8, 8)
        monkeypatch.setattr("erasure_lightning.gallery.sample", lambda _, p, s, **k: asked.extend(p) or pictures)
        shown = fit(ca(), 1)._shown
        assert {c: p.text for c, p in zip(shown.concepts, asked, strict=True)}["star"] == ""
        assert all("dog" in p.text for c, p in zip(shown.concepts, asked, strict=True) if c == "cat")

    def test_the_original_draws_them_so_that_a_resumed_run_finds_the_same(self):
        module = fit(ca(lr=0.1), 3)
        trained, module._gallery = module._gallery.latents, None
        module.on_train_start()
        assert torch.equal(module._gallery.latents, trained)
        module.original = module.backbone  # the control
        module.on_train_start()
        assert not torch.allclose(module._gallery.latents, trained, atol=1e-3)

    def test_every_concept_has_one_however_few_are_asked_for(self):
        assert set(fit(ca(pictures=1), 1)._shown.concepts) == {"cat", "star"}

    def test_a_step_reads_the_sentence_of_the_picture_that_was_drawn(self):
        module = fit(ca(pictures=8), 1)
        _, _, batch = module.noisy_latents(BATCH)
        pairs = set(zip(module._shown.templates, module._shown.concepts, strict=True))
        assert batch.concepts == BATCH.concepts
        assert set(zip(batch.templates, batch.concepts, strict=True)) <= pairs


def test_no_slope_passes_the_start_token():
    module = ca()
    module.configure_model()
    slopes = []
    layer = next(iter(module.backbone.text_layers().values()))
    layer.register_forward_hook(lambda _, __, out: out.register_hook(slopes.append) and None)
    module.student(X, T, BATCH.prompts).sum().backward()
    GradientErasure.student(module, X, T, BATCH.prompts).sum().backward()
    held, control = slopes
    assert held[:, 0].abs().max() == 0 < control[:, 0].abs().max()
    assert torch.allclose(held[:, 1:], control[:, 1:], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prior": -1.0}, "prior of at least 0, pictures and steps of at least 1; found -1.0, 4, 2"),
        ({"pictures": 0}, "found 0.0, 0, 2"),
        ({"bank": TrajectoryBank()}, "CA needs no bank"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        ca(**arguments)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    module = fit(CA(concepts=[Concept("cigarette", "lollipop")], **numbers("ca", pictures=8)), 80)
    assert recognised(module.original, ["cigarette"] * 4, steps=10) == 1
    assert recognised(module.backbone, ["cigarette"] * 4, steps=10) == 0
    assert recognised(module.backbone, KEPT, steps=10) == recognised(module.original, KEPT, steps=10) == 1
