"""Mixtures of words by hand: which words, with which weights, and their ascent."""

import pytest
import torch

from erasure_lightning.backbones.tiny import TinyPixArt
from erasure_lightning.training.word_mixtures import WordMixture

WORDS = ["dog", "tree", "car", "boat", "bird", "fish", "house", "star"]
NAMES = ["cat", "heart"]


def mixture(model, **settings):
    numbers = {"closest": 8, "centres": 4, "temperature": 0.7, "lr": 0.1}
    return WordMixture(model, NAMES, WORDS, **(numbers | settings))


@pytest.fixture
def distances(tiny):
    """Of every word's states from those of each concept, ``(concepts, words)``."""
    own, words = (tiny.encode(names).tokens.flatten(1) for names in (NAMES, WORDS))
    return torch.cdist(own, words)


@pytest.mark.parametrize(("closest", "places"), [(8, [0, 2, 4, 6]), (4, [0, 1, 2, 3])])
def test_candidates_are_spread_over_the_closest_words(tiny, distances, closest, places):
    words = mixture(tiny, closest=closest)
    states = tiny.encode(WORDS).tokens
    for own, candidates in zip(distances, words.candidates, strict=True):
        ranked = states[own.argsort()]
        gaps = [
            (ranked - words.table.tokens[row]).abs().amax(dim=(1, 2)).argmin().item()
            for row in candidates
        ]
        assert gaps == sorted(gaps)
        assert set(gaps) <= set(range(closest))
        assert gaps[0] == places[0]


def weights_by_hand(words, temperature):
    """Softmax of logits with Gumbel noise: ``-log`` of the exponential distribution."""
    gumbel = -torch.empty(2, 4).exponential_().log()
    return ((words.logits + gumbel) / temperature).softmax(dim=1)


@pytest.mark.parametrize("top", [None, 1, 2, 4])
def test_a_sample_and_its_gradient_by_hand(tiny, top):
    """Without ``top`` the word of the largest weight, with the gradient of all."""
    words = mixture(tiny, top=top)
    with torch.no_grad():
        words.logits.add_(torch.randn(2, 4))
    states = words.table.tokens[words.candidates]
    torch.manual_seed(3)
    sample = words.sample([0, 1]).tokens
    torch.manual_seed(3)
    weights = weights_by_hand(words, 0.7)
    largest = weights.topk(top or 1).indices
    chosen = torch.zeros_like(weights).scatter(1, largest, 1.0)
    if top is None:
        expected = (chosen[:, :, None, None] * states).sum(dim=1)
        soft = (weights[:, :, None, None] * states).sum(dim=1)
    else:
        largest = weights * chosen
        largest = largest / largest.sum(dim=1, keepdim=True)
        expected = soft = (largest[:, :, None, None] * states).sum(dim=1)
    assert torch.allclose(sample, expected, atol=1e-5)
    towards = torch.randn_like(sample)
    gradient, by_hand = (
        torch.autograd.grad((each * towards).sum(), words.logits)[0] for each in (sample, soft)
    )
    assert torch.allclose(gradient, by_hand, atol=1e-5)
    assert (gradient.abs().max() > 1e-3) == (top != 1)  # a single word is no mixture


def test_an_ascent_raises_its_objective_by_the_rate(tiny):
    words = mixture(tiny, lr=0.25)
    before = words.logits.detach().clone()
    words.ascend((words.logits * torch.tensor([1.0, -1.0, 1.0, -1.0])).sum())
    change = words.logits.detach() - before
    assert torch.allclose(change, torch.tensor([0.25, -0.25, 0.25, -0.25]).expand(2, 4), atol=1e-5)


def test_each_row_mixes_the_words_of_its_concept(tiny):
    words = mixture(tiny)
    with torch.no_grad():
        words.logits[[0, 1], [0, 3]] = 100.0
    own = words.table.tokens[words.candidates[[0, 1], [0, 3]]]
    sample = words.sample([1, 0, 1]).tokens
    assert torch.allclose(sample, own[[1, 0, 1]], atol=1e-6)
    assert not torch.allclose(own[0], own[1], atol=1e-3)  # the control


def test_a_sampled_word_is_read_to_its_own_end():
    """A denoiser that leaves out padding predicts for it as for the word itself."""
    model = TinyPixArt()
    names = ["dog", "fire engine", "ice cream cone"]
    settings = {"closest": 3, "centres": 3, "temperature": 1.0, "lr": 0.1}
    words = WordMixture(model, ["cat"], names, **settings)
    samples = words.sample([0] * 16)
    plain = model.encode(names)
    each = (samples.tokens[:, None] - plain.tokens).abs().amax(dim=(2, 3)).argmin(dim=1)
    assert each.unique().tolist() == [0, 1, 2]
    x, t = model.noise([0] * 16), torch.tensor(500.0)
    with torch.no_grad():
        assert torch.allclose(
            model.denoise(x, t, samples), model.denoise(x, t, plain[each]), atol=1e-5
        )
