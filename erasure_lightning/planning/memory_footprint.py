"""`MemoryFootprint`: memory of a method's weights, gradients and optimizer in training."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.distributed.fsdp import MAX_UNIT, find_blocks
from erasure_lightning.planning.memory_tracker import nbytes
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.gradient import GradientErasure


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of weights on one device.

    Args:
        frozen: Weights that are not trained, but for those that are offloaded.
        offloaded: Weights of text encoders that leave the device before the first step.
        exchanged: Frozen weights that leave it while those are there, at most as many.
        divisible: Those of them that a sharding strategy splits.
        teacher: Weights of the frozen original that it shares with no other model.
        edit: Weights that are edited and trained.
        unit: The largest unit that a sharding strategy gathers at once.
    """

    frozen: int
    offloaded: int
    exchanged: int
    divisible: int
    teacher: int
    edit: int
    unit: int


@dataclass(frozen=True)
class MemoryFootprint:
    """Memory that a method in training allocates on one device, without activations.

    Args:
        parameters: Numbers of parameters in the denoiser, the text encoders and the autoencoder.
        trained: Number of trained parameters.
        names: Names of the trained tensors.
        weights: Bytes of weights.
        gradients: Bytes of gradients.
        state: Bytes of the optimizer's state.
        spared: Bytes by which a state in 8 bits is smaller than one in float32.
        bank: Bytes of cached trajectories and predictions.
        splits: Whether a sharding strategy splits teacher, edit, gradients and state too.
    """

    parameters: dict[str, int]
    trained: int
    names: list[str]
    weights: WeightBytes
    gradients: int
    state: int
    spared: int
    bank: int
    splits: bool


def footprint_of(module: ErasureModule, in_eight_bits: bool) -> MemoryFootprint:
    """The footprint of a method after a step of Adam.

    Args:
        module: The method; its optimizer has its state, and adapters are not merged yet.
        in_eight_bits: Whether that state is planned in 8 bits.
    """
    trained = module.trainable() if module.automatic_optimization else {}
    full_state = nbytes(_optimizer_state(module)) if trained else 0
    state = _bytes_in_eight_bits(trained.values()) if in_eight_bits else full_state
    original = {name for name, _ in module.original.named_parameters()}
    splits = bool(trained) and not module.replicates_trainable() and trained.keys() <= original
    return MemoryFootprint(
        parameters=_parameter_counts(module.backbone),
        trained=sum(p.numel() for p in trained.values()),
        names=list(trained),
        weights=_weights(module, trained),
        gradients=nbytes(trained.values()),
        state=state,
        spared=full_state - state,
        bank=module.latents.nbytes() if isinstance(module, GradientErasure) else 0,
        splits=splits,
    )


def _weights(module: ErasureModule, trained: dict[str, nn.Parameter]) -> WeightBytes:
    backbone = module.backbone
    edited = {id(p) for p in (module.editable() | trained).values()}
    own = {id(p): p for p in backbone.parameters()}
    models = [model for model in module.children() if isinstance(model, Backbone)]
    frozen = [p for key, p in own.items() if key not in edited]
    divisible = [p for p in _split_weights(backbone, trained) if id(p) not in edited]
    offloads = isinstance(module, GradientErasure) and module.offload_text
    offloaded = nbytes(backbone.text_encoders.parameters()) if offloads else 0
    blocks = find_blocks(backbone.denoiser)
    unit = (
        _largest_unit(backbone.denoiser, blocks) * divisible[0].element_size() if divisible else 0
    )
    return WeightBytes(
        frozen=nbytes([*frozen, *backbone.buffers()]) - offloaded,
        offloaded=offloaded,
        exchanged=min(offloaded, _frozen_denoiser(backbone)),
        divisible=nbytes(divisible),
        teacher=nbytes(p for model in models for p in model.parameters() if id(p) not in own),
        edit=nbytes((module.editable() | trained).values()),
        unit=unit,
    )


def _frozen_denoiser(backbone: Backbone) -> int:
    """Bytes of the denoiser's frozen weights."""
    weights = (*backbone.denoiser.parameters(), *backbone.denoiser.buffers())
    return nbytes(weight for weight in weights if not weight.requires_grad)


def _split_weights(backbone: Backbone, trained: dict[str, nn.Parameter]) -> Iterator[nn.Parameter]:
    """Weights that a sharding strategy splits: all but those of embeddings and frozen towers."""
    towers = [backbone.text_encoders] if backbone.edits_text(trained) else []
    for part in (backbone.denoiser, *towers):
        for module in part.modules():
            if not isinstance(module, nn.Embedding):
                yield from module.parameters(recurse=False)


def _largest_unit(module: nn.Module, blocks: set[int]) -> int:
    """Parameters of the largest part that is sharded as one.

    Parts of more than ``distributed.fsdp.MAX_UNIT`` parameters are divided, unless they are blocks
    or have no children.
    """
    size = sum(p.numel() for p in module.parameters())
    children = list(module.children())
    if size <= MAX_UNIT or not children or id(module) in blocks:
        return size
    return max(_largest_unit(child, blocks) for child in children)


def _parameter_counts(backbone: Backbone) -> dict[str, int]:
    """Numbers of parameters in the denoiser, the text encoders and the autoencoder (the rest)."""
    parts = {"denoiser": backbone.denoiser, "text encoders": backbone.text_encoders}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    total = sum(p.numel() for p in backbone.parameters())
    return counts | {"autoencoder": total - sum(counts.values())}


def _optimizer_state(module: ErasureModule) -> Iterator[Tensor]:
    """Tensors of the optimizers' states."""
    for optimizer in module.trainer.optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _bytes_in_eight_bits(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of Adam's two moments in 8 bits: a byte an entry, and a scale for each 256 entries.

    Moments of fewer than 4096 entries are float32. Verified in bitsandbytes 0.50.
    """
    sizes = [p.numel() for p in parameters]
    return sum(2 * (n + 4 * -(-n // 256)) if n >= 4096 else 8 * n for n in sizes)
