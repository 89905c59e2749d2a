"""Erasers after attention to text (Huang et al., Receler, arXiv 2311.17717).

Official code: jasper0314-huang/Receler @ 3ccedc9.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.base import ADAPTER_CHILD, Adapter


class Eraser(Adapter):
    """Adds ``E(h) = U gelu(D h)`` to what attention to text returns for pixels, ``h``.

    It acts before the residual sum, and before its gate where there is one. What joint attention
    returns for the text remains as it is. Verified in code: rank 128, biases in both maps, the
    second is zero at initialisation.

    Args:
        layer: A diffusers module of cross-attention or joint attention.
        rank: Width between the two maps, at least 1.
    """

    def __init__(self, layer: nn.Module, *, rank: int) -> None:
        super().__init__(layer)
        width = cast(Any, layer).out_dim
        self.maps = nn.Sequential(nn.Linear(width, rank), nn.GELU(), nn.Linear(rank, width))
        for parameter in self.maps[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """``h + E(h)``, ``(B, pixels, D)``."""
        return output + cast(Tensor, self.maps(output))

    def change(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """`forward` of the pixels' output, at `strength`."""
        if not isinstance(output, tuple):
            return super().change(layer, args, kwargs, output)
        pixels, *others = output  # the text's; FLUX's IP-Adapters add a third
        return super().change(layer, (pixels,), kwargs, pixels), *others

    def is_identity(self) -> bool:
        """Whether the second map is zero."""
        return not any(parameter.any() for parameter in self.maps[2].parameters())


@contextmanager
def eraser_outputs(denoiser: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Context that collects ``E(h)`` ``(B, pixels, D)`` of each eraser, by its layer's name.

    The dictionary has the values of the last forward in the context.
    """
    outputs: dict[str, Tensor] = {}

    def collect(name: str, maps: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        outputs[name] = output

    with ExitStack() as hooks:
        for name, module in denoiser.named_modules():
            if isinstance(module, Eraser):
                hook = partial(collect, name.removesuffix(f".{ADAPTER_CHILD}"))
                hooks.callback(module.maps.register_forward_hook(hook).remove)
        yield outputs


def mean_square_outside(outputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
    """Mean square of erasers' outputs outside the masks, over all layers, a scalar.

    Receler's ``L_reg``: ``sum_pixels (1 - M) mean_channels E(h)^2 / sum_pixels (1 - M)``, verified
    in code.

    Args:
        outputs: ``E(h)`` by layer, ``(B, pixels, D)`` each.
        masks: ``M`` by layer, boolean ``(B, pixels)`` each.
    """
    means = []
    for name, output in outputs.items():
        outside = ~masks[name]
        squares = output.float().square().mean(dim=2) * outside
        means.append((squares.sum(dim=1) / outside.sum(dim=1).clamp(min=1)).mean())
    return torch.stack(means).mean()
