"""Frozen linear layers whose weights are stored in 8 bits."""

from collections.abc import Callable, Collection
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.precision import BaseDtype
from erasure_lightning.distributed.fsdp import find_blocks
from erasure_lightning.errors import ErasureError


class EightBitLinear(nn.Linear):
    """A frozen linear layer whose weights are integers of 8 bits with a scale for each output.

    ``W = diag(s) Q`` with ``s_i = max_j |W_ij| / 127``, rounded to the nearest: of normally
    distributed weights 1 % of their deviation is lost, where an unscaled float of 8 bits (e4m3)
    loses at least 2.6 %. Products are computed in the precision of the inputs, or of autocast, in
    which the integers are exact. Source: absmax quantisation by vectors of Dettmers et al. 2022
    (arXiv 2208.07339, section 2), stated, without its rows of 16 bits, as inputs are not quantised.
    """

    #: The scales ``s``, ``(out,)``, in float32.
    scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """The outputs ``(..., out)`` for inputs ``(..., in)``."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        product = cast(Callable[..., Tensor], _Product.apply)
        return product(input, self.weight, self.scale, self.bias)


def refuse_sharding(base_dtype: BaseDtype, is_sharded: bool) -> None:
    """Checks that weights in 8 bits are not sharded.

    Args:
        base_dtype: Precision of the frozen model.
        is_sharded: Whether its weights are.

    Raises:
        ErasureError: If both.
    """
    if is_sharded and base_dtype == "int8":
        raise ErasureError(
            "--trainer.strategy fsdp2 needs frozen weights of 16 or 32 bits; found base_dtype int8."
            " Give --model.base_dtype bfloat16: each device holds a share of them."
        )


def store_in_eight_bits(backbone: Backbone, edited: Collection[str]) -> None:
    """Quantises the linear layers of the denoiser's blocks that are not edited, in place.

    Models that share such a layer share the quantised one. The denoiser can no longer be saved.

    Args:
        backbone: The model, with its adapters.
        edited: Names in it of parameters that change.
    """
    changed = {name.rpartition(".")[0] for name in edited}
    blocks = find_blocks(backbone.denoiser)
    in_blocks = {
        id(layer)
        for block in backbone.denoiser.modules()
        if id(block) in blocks
        for layer in block.modules()
        # Of subclasses other code may read the weights, and so may a rule that is a layer's child.
        if type(layer) is nn.Linear and not layer._modules
    }
    for name, layer in backbone.named_modules():
        if id(layer) in in_blocks and name not in changed:
            _quantise(cast(nn.Linear, layer))
    cast(Any, backbone.denoiser).save_pretrained = _refuse_saving


def _quantise(layer: nn.Linear) -> None:
    weight = layer.weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    values = (weight / scale[:, None]).round().to(torch.int8)
    layer.weight = nn.Parameter(values, requires_grad=False)
    layer.register_buffer("scale", scale)
    layer.__class__ = EightBitLinear


def _refuse_saving(*_: Any, **__: Any) -> NoReturn:
    raise ErasureError(
        "A pipeline needs plain weights to be saved; found layers of the denoiser in 8 bits. Apply"
        " the edit to a pipeline that was loaded without base_dtype int8, and save that."
    )


class _Product(torch.autograd.Function):
    """The output of a layer; the backward pass converts the weights anew, and saves no copy."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        output = linear(input, weight.to(input.dtype)).mul_(scale.to(input.dtype))
        return output if bias is None else output.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return (gradient * scale.to(gradient.dtype)) @ weight.to(gradient.dtype), None, None, None
