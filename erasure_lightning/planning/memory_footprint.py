"""What a method's weights and its optimizer take, in numbers and bytes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.distributed.fsdp import MAX_UNIT
from erasure_lightning.planning.memory_tracker import nbytes
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.gradient import GradientErasure


@dataclass(frozen=True)
class Weights:
    """Bytes of weights, all on one device.

    Args:
        frozen: What stays as it is.
        divisible: What of it a splitting strategy splits.
        teacher: What frozen twins hold of their own.
        edit: What is edited and trained.
        unit: The largest unit that a splitting strategy gathers at once.
    """

    frozen: int
    divisible: int
    teacher: int
    edit: int
    unit: int


@dataclass(frozen=True)
class MemoryFootprint:
    """What a method in training keeps on one device, without what passes in a step.

    Args:
        parameters: Numbers of them in the denoiser, the text encoders and all else (the
            autoencoder).
        trained: How many an optimizer moves.
        names: Of what is trained.
        weights: Bytes of weights.
        gradients: Bytes.
        state: Bytes of the optimizer's state.
        spared: Bytes that a state in 8 bits takes less than one in float32.
        bank: Bytes of trajectories and answers.
        splits: Whether a splitting strategy splits teacher, edit, gradients and state too.
    """

    parameters: dict[str, int]
    trained: int
    names: list[str]
    weights: Weights
    gradients: int
    state: int
    spared: int
    bank: int
    splits: bool


def footprint_of(module: ErasureModule, eight: bool) -> MemoryFootprint:
    """Of a method that has taken a step with Adam.

    Args:
        module: The method; its optimizer has its state, and nothing is merged or fused yet.
        eight: Whether that state would be in 8 bits.
    """
    trained = module.trainable() if module.automatic_optimization else {}
    full = nbytes(_moments(module)) if trained else 0
    state = _in_eight_bits(trained.values()) if eight else full
    return MemoryFootprint(
        parameters=_counts(module.backbone),
        trained=sum(p.numel() for p in trained.values()),
        names=list(trained),
        weights=_weights(module, trained),
        gradients=nbytes(trained.values()),
        state=state,
        spared=full - state,
        bank=module.latents.nbytes() if isinstance(module, GradientErasure) else 0,
        splits=bool(trained)
        and not module.replicates_trainable()
        and trained.keys() <= _names(module.original),
    )


def _names(backbone: Backbone) -> set[str]:
    return {name for name, _ in backbone.named_parameters()}


def _weights(module: ErasureModule, trained: dict[str, nn.Parameter]) -> Weights:
    backbone = module.backbone
    edited = {id(p): p for p in (module.editable() | trained).values()}
    own = {id(p): p for p in backbone.parameters()}
    twins = [
        p for model in module.children() if isinstance(model, Backbone) for p in model.parameters()
    ]
    towers = [backbone.text_encoders] if backbone.edits_text(trained) else []
    parts = [module for part in (backbone.denoiser, *towers) for module in part.modules()]
    own_of = (
        p
        for part in parts
        if not isinstance(part, nn.Embedding)
        for p in part.parameters(recurse=False)
    )
    divisible = [p for p in own_of if id(p) not in edited]
    return Weights(
        frozen=nbytes([*(p for key, p in own.items() if key not in edited), *backbone.buffers()]),
        divisible=nbytes(divisible),
        teacher=nbytes(p for p in twins if id(p) not in own),
        edit=nbytes(edited.values()),
        unit=_largest(backbone.denoiser) * divisible[0].element_size() if divisible else 0,
    )


def _largest(module: nn.Module) -> int:
    """Weights of the largest part that is split as one: `sharding.MOST` at most, where it has
    parts.
    """
    size, children = sum(p.numel() for p in module.parameters()), list(module.children())
    return size if size <= MAX_UNIT or not children else max(map(_largest, children))


def _counts(backbone: Backbone) -> dict[str, int]:
    """Numbers of parameters in the denoiser, the text encoders and all else (the autoencoder)."""
    parts = {"denoiser": backbone.denoiser, "text encoders": backbone.text_encoders}
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return count | {
        "autoencoder": sum(p.numel() for p in backbone.parameters()) - sum(count.values())
    }


def _moments(module: ErasureModule) -> Iterator[Tensor]:
    """What optimizers keep of each weight."""
    for optimizer in module.trainer.optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _in_eight_bits(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of two moments of a byte an entry and a scale for each 256; of fewer than 4096 entries
    they stay float32.

    Verified in bitsandbytes 0.50.
    """
    sizes = [p.numel() for p in parameters]
    return sum(2 * (n + 4 * -(-n // 256)) if n >= 4096 else 8 * n for n in sizes)
