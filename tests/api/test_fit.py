import pytest

from erasure_lightning.api.fit import fit
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.esd import ESD
from erasure_lightning.retention.local_noise import LocalNoisePreservation


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_notebook", "ddp_spawn"])
def test_ranks_that_are_children_are_refused_before_training(strategy, tmp_path):
    module = ESD(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    several = {"accelerator": "cpu", "devices": 2, "strategy": strategy}
    with pytest.raises(ErasureError, match="as a notebook starts them. Run it as a script"):
        fit(module, run_dir=tmp_path, max_steps=1, progress_bar=False, **several)
    assert not [*tmp_path.iterdir()]


def test_equal_callbacks_with_a_state_are_refused_before_training(tmp_path):
    module = ESD(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    callbacks = [LocalNoisePreservation(), LocalNoisePreservation()]
    with pytest.raises(ErasureError, match="each LocalNoisePreservation with other arguments"):
        fit(module, run_dir=tmp_path, callbacks=callbacks, max_steps=1, progress_bar=False)
    assert not [*tmp_path.iterdir()]
