"""Sentences of concepts: all of them, and which methods read them."""

import pytest
import torch
from lightning.pytorch import Trainer

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import STYLE_TEMPLATES, Concept
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.concepts.word_lists import COCO_OBJECTS
from erasure_lightning.data.concept_prompts import ConceptPrompts
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.eap import EAP
from erasure_lightning.methods.eraseanything import EraseAnything
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.mace import MACE
from erasure_lightning.methods.realera import RealEraClosedForm
from erasure_lightning.methods.salun import SalUn
from erasure_lightning.methods.trce import TRCE
from erasure_lightning.methods.uce import UCE
from erasure_lightning.retention.monitor import RetentionMonitor
from erasure_lightning.testing import quick_fit
from erasure_lightning.training.image_sources import GeneratedImages


def test_a_style_is_put_on_retained_things():
    concepts = [Concept("cat"), Concept("emoji", "photo", kind="style")]
    batch = ConceptPrompts(concepts, Vocabulary(None, concepts)).sentences(1)
    assert len(set(batch.templates)) == len(STYLE_TEMPLATES)
    assert not [t for t in batch.templates if "{thing}" in t]
    assert set(batch.indices) == {1}
    assert set(batch.concepts) == {"emoji"}
    assert set(batch.anchors) == {"photo"}


def test_a_covering_set_has_every_concept_and_the_first_is_a_batch():
    concepts = [Concept("cat"), Concept("star"), Concept("bow")]
    prompts = ConceptPrompts(concepts, Vocabulary(None, concepts))
    batches, sets = (
        [draw(4, number, 1) for number in range(40)] for draw in (prompts.batch, prompts.covering)
    )
    assert any(len(set(batch.indices)) < 3 for batch in batches)
    assert all(set(each.indices) == {0, 1, 2} and len(each.concepts) == 4 for each in sets)
    assert sets[0] == batches[0]
    assert prompts.covering(6, 5, 1) == prompts.batch(6, 5, 1)
    assert len(prompts.covering(2, 5, 1).concepts) == 2


def test_templates_of_ones_own_replace_the_vocabulary_s():
    concepts = [Concept("cat")]
    batch = ConceptPrompts(concepts, Vocabulary(None, concepts), ["my {}", "two {}s"]).sentences(0)
    assert [prompt.text for prompt in batch.prompts] == ["my cat", "two cats"]


class TestAllLabels:
    """Every label is erased, as all of COCO's objects may be, and none remains."""

    concepts = tuple(map(Concept, COCO_OBJECTS))

    def fit(self, method, *callbacks, **arguments):
        module = method(concepts=[*self.concepts], backbone=TinyBackbone(), **arguments)
        return quick_fit(module, 2, *callbacks)

    @pytest.mark.parametrize("method", [ESD, UCE])
    def test_can_be_erased(self, method):
        assert not Vocabulary(None, self.concepts).others  # the control
        assert self.fit(method).global_step

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((SalUn,), "SalUn needs a label .* Set alpha 0"),
            ((EAP,), "EAP needs words .* Give it a vocabulary"),
            ((EraseAnything,), "EraseAnything needs words .* Set unrelated"),
            ((ESD, RetentionMonitor()), "RetentionMonitor needs prompts; .* Give prompts"),
        ],
        ids=["SalUn", "EAP", "EraseAnything", "RetentionMonitor"],
    )
    def test_leave_none_to_retain(self, arguments, words):
        with pytest.raises(ErasureError, match=words):
            self.fit(*arguments, latents=GeneratedImages(images=1, steps=1))


def closed_stage(method, templates, **arguments):
    """What a method's closed form solves for, after a fit with templates, as one tensor."""
    module = method(concepts=[Concept("cat", "dog")], backbone=TinyBackbone(), seed=1, **arguments)
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, PromptData(batch_size=2, templates=templates))
    if method is MACE:
        return module._refined
    solved = module.stage_1() if method is TRCE else module.solve()
    return torch.cat([weight.flatten() for weight in solved.values()])


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (RealEraClosedForm, {}),
        (TRCE, {}),
        (MACE, {"latents": GeneratedImages(images=1, steps=2)}),
    ],
    ids=["RealEraClosedForm", "TRCE", "MACE"],
)
def test_closed_stages_solve_for_the_templates_of_the_data(method, arguments):
    default, again, own = (
        closed_stage(method, templates, **arguments) for templates in (None, None, ["my {}"])
    )
    assert torch.equal(default, again)
    assert not torch.allclose(default, own)
