"""The classifier of noisy latents: what it learns, and its gradient."""

from copy import deepcopy

import pytest
import torch

from erasure_lightning.backbones.process import RectifiedFlow
from erasure_lightning.diffusion import latent_classifier
from erasure_lightning.diffusion.latent_classifier import train_latent_classifier

SHAPE = (2, 3, 3)


@pytest.fixture(scope="module")
def classifier():
    """Of latents around 1, a concept, and a larger number around -1."""
    torch.manual_seed(0)
    concept = 1 + 0.3 * torch.randn(10, *SHAPE)
    others = -1 + 0.3 * torch.randn(30, *SHAPE)
    return train_latent_classifier(RectifiedFlow(), concept, others, epochs=15)


def test_it_recognises_the_concept_beneath_noise(classifier):
    noise = torch.randn(40, *SHAPE)
    for share in (0.0, 0.6):
        t = torch.tensor(1000 * share)
        shown = classifier(RectifiedFlow().noise(torch.ones(40, *SHAPE), noise, t), t)
        other = classifier(RectifiedFlow().noise(-torch.ones(40, *SHAPE), noise, t), t)
        assert (shown > 0).float().mean() > 0.9
        assert (other < 0).float().mean() > 0.9


def test_where_latents_are_noise_it_is_as_unsure_as_the_images_are_balanced(classifier):
    t = torch.full((100,), 1000.0)
    shares = classifier(torch.randn(100, *SHAPE), t).sigmoid()
    assert 0.3 < shares.mean() < 0.7  # of 10 against 30 images: the concept's are weighted


def test_steps_along_its_gradient_raise_the_logit(classifier):
    x = torch.zeros(2, *SHAPE)
    t = torch.tensor(300.0)
    gradient = classifier.gradient(x, t)
    assert gradient.shape == x.shape
    assert (classifier(x + 0.1 * gradient / gradient.norm(), t) > classifier(x, t)).all()
    assert all(parameter.grad is None for parameter in classifier.parameters())
    with torch.no_grad():
        assert torch.equal(classifier.gradient(x, t), gradient)


def test_it_is_that_of_the_epoch_with_the_lowest_loss_on_images_it_was_not_trained_on(monkeypatch):
    loss = latent_classifier._loss
    held_out = iter([0.5, 0.1, 0.9])
    states = []

    def scripted(classifier, *arguments):
        if torch.is_grad_enabled():
            return loss(classifier, *arguments)
        states.append(deepcopy(classifier.state_dict()))
        return torch.tensor(next(held_out))

    monkeypatch.setattr(latent_classifier, "_loss", scripted)
    latents = torch.ones(3, *SHAPE)
    trained = train_latent_classifier(RectifiedFlow(), latents, -latents, epochs=3)
    assert len(states) == 3
    final = trained.state_dict()
    assert all(torch.equal(final[name], states[1][name]) for name in final)
    assert not torch.equal(final["of_time.weight"], states[2]["of_time.weight"])
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_most_of_its_times_are_noisy():
    """Cube roots of uniform shares, of which the mean is 0.75."""
    shares = []

    class Recorder(RectifiedFlow):
        def at(self, share):
            shares.append(share)
            return super().at(share)

    latents = torch.ones(20, *SHAPE)
    train_latent_classifier(Recorder(), latents, -latents, epochs=1)
    assert torch.cat(shares).mean() == pytest.approx(0.75, abs=0.05)


def test_equal_seeds_give_equal_classifiers():
    def trained(seed):
        torch.manual_seed(seed)
        latents = torch.ones(3, *SHAPE)
        return train_latent_classifier(RectifiedFlow(), latents, -latents, epochs=1).state_dict()

    first, again, other = (trained(seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["of_time.weight"], other["of_time.weight"])
