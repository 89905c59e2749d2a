"""What stands where in two sequences of tokens that are joined, as a family with two text towers
reads them.
"""

from dataclasses import replace

import pytest
import torch

from erasure_lightning.backbones.conditioning import (
    CONCEPT,
    END,
    PADDING,
    START,
    TEMPLATE,
    Conditioning,
)
from erasure_lightning.backbones.tiny import TINY_BACKBONES
from erasure_lightning.concepts.concept import Phrase
from erasure_lightning.training.prompt_states import aligned_states

#: ``a cat`` and ``a zoo cat`` in a sequence of 6 positions, and a second of 5 without the article.
SHORT = ([START, TEMPLATE, CONCEPT, END, PADDING, PADDING], [START, CONCEPT, END, PADDING, PADDING])
LONG = ([START, TEMPLATE, CONCEPT, CONCEPT, END, PADDING], [START, CONCEPT, CONCEPT, END, PADDING])


def conditioning(*sentences, pooled=True):
    """Tokens that tell their positions."""
    roles = torch.tensor([[*first, *second] for first, second in sentences])
    count, length = roles.shape
    tokens = torch.arange(float(length)).view(1, -1, 1).expand(count, -1, 2)
    vector = torch.arange(float(3 * count)).view(count, 3)
    return Conditioning(
        tokens,
        roles,
        roles,
        (slice(0, 6), slice(6, 11)),
        vector if pooled else None,
        torch.zeros(count, 4),
    )


def test_positions_are_looked_for_inside_each_segment():
    both = conditioning(SHORT, LONG)
    assert both.reads_concept()[0].nonzero().flatten().tolist() == [2, 3, 4, 5, 7, 8, 9, 10]
    assert both.around_concept()[0].nonzero().flatten().tolist() == [3, 4, 5, 8, 9, 10]
    assert both.around_concept()[1].nonzero().flatten().tolist() == [4, 5, 9, 10]
    assert both.from_end()[0].tolist() == [-3, -2, -1, 0, 1, 2, -2, -1, 0, 1, 2]


def test_all_states_of_a_bidirectional_segment_depend_on_the_concept():
    second = replace(conditioning(SHORT), bidirectional=(1,))
    assert second.reads_concept()[0].nonzero().flatten().tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert second.around_concept()[0].nonzero().flatten().tolist() == [3, 4, 5, 6, 8, 9, 10]
    assert Conditioning.cat([second, second])[:1].bidirectional == (1,)


@pytest.mark.parametrize("family", TINY_BACKBONES, ids=lambda family: family.__name__)
def test_states_depend_on_the_concept_where_the_mask_says_so(family):
    model = family()
    cat, dog = model.encode([Phrase("a cat", 2, 5)]), model.encode([Phrase("a dog", 2, 5)])
    differ = (cat.tokens != dog.tokens).any(dim=2)
    assert torch.equal(differ, cat.reads_concept())


def test_spans_are_aligned_inside_each_segment():
    """Each end meets the end of its own sequence, and no position another sequence's."""
    place = aligned_states(conditioning(SHORT), like=conditioning(LONG))[0, :, 0].tolist()
    assert place[:2] + place[4:5] == [0, 1, 3]
    assert place[6:7] + place[9:10] == [6, 8]
    assert all(p < 6 for p in place[:6])
    assert all(p >= 6 for p in place[6:])


def test_the_pooled_vector_is_kept():
    both = conditioning(SHORT, LONG)
    twice = Conditioning.cat([both, both[:1]])
    assert torch.equal(twice.pooled, torch.cat([both.pooled, both.pooled[:1]]))
    assert torch.equal(both[1:].expand(3).pooled, both.pooled[1:].expand(3, -1))
    assert torch.equal(both.with_tokens(both.tokens + 1).pooled, both.pooled)
    chosen = both.where(torch.tensor([True, False]), replace(both, pooled=both.pooled + 10)[:1])
    assert torch.equal(chosen.pooled, torch.stack([both.pooled[0], both.pooled[0] + 10]))
