"""Closed forms of many concepts read each sentence once, and not one by one."""

from collections import Counter

import pytest

from erasure_lightning.backbones.text_cache import PROMPTS_PER_BATCH
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.methods.mace import MACE
from erasure_lightning.methods.realera import RealEraClosedForm
from erasure_lightning.methods.rece import RECE
from erasure_lightning.methods.uce import UCE
from erasure_lightning.retention.beyond_concept import BeyondConceptRegularization
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.testing import quick_fit
from erasure_lightning.training.image_sources import GeneratedImages

pytestmark = pytest.mark.usefixtures("models_encode_alone")

#: A hundred short words, half of which become dogs and half birds.
MANY = [
    Concept(f"{chr(97 + i // 26)}{chr(97 + i % 26)}", "dog" if i % 2 else "bird")
    for i in range(100)
]

METHODS = {
    "UCE": lambda **arguments: UCE(templates=["{}", "a {}"], **arguments),
    "RECE": RECE,
    "MACE": lambda **arguments: MACE(latents=GeneratedImages(1, 1), **arguments),
    "RealEraClosedForm": RealEraClosedForm,
}


def read_by(method, concepts, *callbacks):
    """What the text encoder reads: sentences by how often, padding of blocks aside, and how many
    calls it takes.
    """
    backbone, counts, calls = TinyBackbone(), Counter(), []
    contextualize = backbone.contextualize

    def listen(embedded):
        calls.append(len(embedded[0].ids))
        counts.update({tuple(ids) for ids in embedded[0].ids.tolist()})
        return contextualize(embedded)

    backbone.contextualize = listen
    quick_fit(METHODS[method](concepts=concepts, backbone=backbone), 1, *callbacks)
    return counts, calls


@pytest.mark.parametrize("method", METHODS)
def test_of_many_concepts_each_sentence_is_read_once_and_in_blocks(method):
    counts, calls = read_by(method, MANY)
    assert len(counts) > len(MANY)
    assert counts.total() <= 1.05 * len(counts)
    assert sum(calls) <= 1.1 * len(counts) + 3 * PROMPTS_PER_BATCH


@pytest.mark.parametrize("callback", [LocalNoisePreservation, BeyondConceptRegularization])
def test_what_callbacks_hold_is_read_once_too(callback):
    counts, _ = read_by("RECE", MANY[:5], callback())
    assert max(counts.values()) <= 2  # once, and cut to the longest where distances are measured
