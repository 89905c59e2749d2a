"""Sharding of a module's models over ranks."""

from collections.abc import Mapping

from lightning import LightningModule
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.distributed.fsdp import shard_weights
from erasure_lightning.distributed.scattering import scatter_weights


def shard_module(
    module: LightningModule,
    backbone: Backbone,
    trained: Mapping[str, nn.Parameter],
    mesh: DeviceMesh,
) -> None:
    """Shard the denoisers, and text encoders that are trained, over the ranks of a mesh.

    From then on every rank must evaluate the models together.

    Args:
        module: A method whose models are loaded; ranks above 0 have a denoiser without values.
        backbone: The model that it trains, with whose layers the other models share theirs.
        trained: Parameters with optimizer state that is sharded too, by name in the backbone.
        mesh: The ranks.
    """
    weights = {name: p.detach() for name, p in module.named_parameters()}
    weights |= {name: buffer.detach() for name, buffer in module.named_buffers()}
    models = [child for child in module.children() if isinstance(child, Backbone)]
    others = [model for model in models if model is not backbone]
    shard_weights(backbone.denoiser, [model.denoiser for model in others], mesh, trained)
    towers = {name: p for name, p in trained.items() if Backbone.edits_text([name])}
    if towers:
        encoders = [model.text_encoders for model in others]
        shard_weights(backbone.text_encoders, encoders, mesh, towers)
    for model in models:
        model.sharded = True
    full = {} if module.global_rank else weights
    scatter_weights(module, full, module.trainer.strategy.root_device)
