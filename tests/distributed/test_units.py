"""A block of a transformer is gathered as a whole: it is one unit of FSDP2, in one process too."""

import pytest
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from erasure_lightning.backbones.full_size import full_size_model
from erasure_lightning.backbones.tiny import TinyFlux, TinyPixArt, TinySD3
from erasure_lightning.distributed import fsdp
from erasure_lightning.distributed.fsdp import find_blocks, joint_units, shard_weights

BLOCKS = {
    TinySD3: {"JointTransformerBlock"},
    TinyFlux: {"FluxTransformerBlock", "FluxSingleTransformerBlock"},
    TinyPixArt: {"BasicTransformerBlock"},
}


@pytest.fixture
def mesh(tmp_path):
    store = f"file://{tmp_path}/store"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_blocks_of_flux_are_the_19_and_38():
    model = full_size_model("black-forest-labs/FLUX.1-dev").denoiser
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    assert len(blocks) == 19 + 38
    assert find_blocks(model) == {id(block) for block in blocks}


@pytest.mark.parametrize("family", BLOCKS)
def test_a_frozen_block_is_a_single_unit_of_any_size(family, mesh, monkeypatch):
    monkeypatch.setattr(fsdp, "MAX_UNIT", 100)
    denoiser = family().denoiser
    blocks = [each for each in denoiser.modules() if type(each).__name__ in BLOCKS[family]]
    shard_weights(denoiser, [denoiser], mesh, {})
    assert all(isinstance(block, FSDPModule) for block in blocks)
    within = [part for block in blocks for part in [*block.modules()][1:]]
    assert within
    assert not any(isinstance(part, FSDPModule) for part in within)


@pytest.mark.parametrize("family", BLOCKS)
def test_a_block_with_trained_layers_has_two_units_in_each_model(family, mesh):
    model = family()
    trained = model.denoiser_parameters("x-strict")
    original = model.frozen_copy(trained)
    edited = {name.split(".attn")[0].removeprefix("denoiser.") for name in trained}
    shard_weights(model.denoiser, [original.denoiser], mesh, trained)
    for name in edited:
        units = [
            {id(unit) for unit in vars(each.denoiser.get_submodule(name))["joint_units"]}
            for each in (model, original)
        ]
        assert [len(each) for each in units] == [2, 2]
        assert len(units[0] & units[1]) == 1  # what both share
    assert len([*joint_units(model.denoiser)]) == 2 * len(edited)
