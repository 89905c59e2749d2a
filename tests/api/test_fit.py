import pytest

from erasure_lightning.api.fit import fit
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.esd import ESD


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_notebook", "ddp_spawn"])
def test_ranks_that_are_children_are_refused_before_training(strategy, tmp_path):
    module = ESD(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    several = {"accelerator": "cpu", "devices": 2, "strategy": strategy}
    with pytest.raises(ErasureError, match="as a notebook starts them. Run it as a script"):
        fit(module, run_dir=tmp_path, max_steps=1, progress_bar=False, **several)
    assert not [*tmp_path.iterdir()]
