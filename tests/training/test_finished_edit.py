"""Edits without training of their own."""

import pytest
from lightning import Trainer

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.composition import Composition
from erasure_lightning.training.imported import Imported


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        (Composition, "tensors", "`erasure compose RUN RUN --out PATH` makes it"),
        (Imported, "parameters", "Fit a method, with base_edit"),
    ],
)
def test_they_refuse_to_be_trained(kind, names, message):
    module = kind(**{names: []}, concepts=[Concept("cat")], backbone=TinyBackbone())
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ErasureError, match=message):
        trainer.fit(module)


@pytest.mark.parametrize(("kind", "names"), [(Composition, "tensors"), (Imported, "parameters")])
def test_a_parameter_that_the_model_lacks_is_named(kind, names):
    module = kind(**{names: ["unet.x"]}, concepts=[Concept("cat")], backbone=TinyBackbone())
    with pytest.raises(ErasureError, match=r"found 1 missing, unet\.x first"):
        module.configure_model()
