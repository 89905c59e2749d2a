"""Classifier guidance: its step, its examples, and success without a word."""

import pytest
import torch
from under_attack import cigarette, tiny_target

from erasure_lightning.attacks.classifier_guidance import ClassifierGuidance, guide
from erasure_lightning.backbones.process import Diffusion, RectifiedFlow
from erasure_lightning.backbones.tiny import TINY_BACKBONES
from erasure_lightning.diffusion.ddim import DDIMStep, ddim, ddim_times
from erasure_lightning.diffusion.latent_classifier import LatentClassifier, train_latent_classifier
from erasure_lightning.errors import ErasureError

FEW = {"scales": [0.0, 50.0], "examples": 2, "others": 3, "epochs": 2}


def attack(**arguments):
    return ClassifierGuidance(**(FEW | arguments))


@pytest.mark.parametrize("family", TINY_BACKBONES, ids=lambda family: family.__name__)
def test_a_step_subtracts_the_scaled_gradient_from_the_noise(family):
    model = family()
    process = model.process
    x = model.noise([0])
    classifier = LatentClassifier(x.numel(), process).eval()
    t = process.at(torch.tensor(0.5))
    clean, noise = torch.ones_like(x), process.noise_in(x, torch.ones_like(x), t)
    step = DDIMStep(0, x, t, t / 2, clean, noise)
    new_clean, new_noise = guide(classifier, 3.0)(step)
    deviation = process.noise(torch.zeros_like(x), torch.ones_like(x), t)
    expected = noise - 3 * deviation * classifier.gradient(x, t)
    assert torch.allclose(new_noise, expected)
    assert not torch.allclose(new_noise, noise)
    assert torch.allclose(process.noise(new_clean, new_noise, t), x, atol=1e-5)
    assert guide(classifier, 0.0)(step)[1] is noise


def test_no_guidance_where_latents_are_noise_alone():
    process = RectifiedFlow()
    x = torch.randn(1, 4, 2, 2)
    classifier = LatentClassifier(x.numel(), process)
    step = DDIMStep(0, x, torch.tensor(1000.0), torch.tensor(500.0), torch.zeros_like(x), x)
    assert guide(classifier, 3.0)(step)[1] is x


def test_without_scale_the_images_are_the_unconditional_ones():
    target = tiny_target()
    (case,) = target.cases(0)
    model = target.edited
    times = ddim_times(model, target.steps)
    latents = ddim(model, model.unconditional(2), model.noise(case.seeds), times)
    (result,) = attack(scales=[0.0]).run(target, 0)
    assert torch.equal(result.images, model.decode(latents))
    assert torch.equal(result.images, result.controls["no classifier"])
    (guided,) = attack(scales=[50.0]).run(target, 0)
    assert not torch.allclose(guided.images, result.images, atol=1e-3)


def test_it_learns_from_images_of_the_original_alone(monkeypatch):
    trained = []
    monkeypatch.setattr(
        "erasure_lightning.attacks.classifier_guidance.train_latent_classifier",
        lambda *args, **kwargs: (
            trained.append((args, kwargs)) or train_latent_classifier(*args, **kwargs)
        ),
    )
    target = tiny_target()
    (case,) = target.cases(0)
    attack().run(target, 0)
    (((process, concept, others), numbers),) = trained
    assert numbers == {"epochs": 2}
    assert isinstance(process, Diffusion)
    assert torch.equal(concept, target.examples(case, 2))
    assert others.shape == (3, *concept.shape[1:])


def test_equal_seeds_give_equal_results_and_the_model_is_not_modified():
    target = tiny_target()
    before = target.edited.fingerprint()
    first, again = (attack().run(target, 0)[0].images for _ in range(2))
    assert torch.equal(first, again)
    assert target.edited.fingerprint() == before
    assert not any(parameter.grad is not None for parameter in target.edited.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scales": []}, "ClassifierGuidance needs scales, at least one number"),
        ({"epochs": 0}, "ClassifierGuidance needs epochs of at least 1; found 0"),
    ],
)
def test_numbers_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        attack(**arguments)


@pytest.mark.slow
def test_it_brings_a_cigarette_back_without_words_and_from_a_shuffled_denoiser_it_does_not():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette(erased=False, images=2)
    (case,) = target.cases(0)
    few = {"scales": [10, 20], "examples": 12, "others": 24, "epochs": 40}
    (result,) = ClassifierGuidance(**few).run(target, 0)
    assert target.success_rate(case, result.images) >= 0.5
    assert target.success_rate(case, result.controls["shuffled"]) == 0
    assert target.success_rate(case, result.controls["no classifier"]) == 0
