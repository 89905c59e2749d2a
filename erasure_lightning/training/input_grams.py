"""Gram matrices of what prompts give text layers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.concepts.concept import Phrase

#: Prompts encoded at once.
_CHUNK = 64


def input_gram(backbone: Backbone, prompts: Sequence[str | Phrase], source: TextInput) -> Tensor:
    """``sum k k^T`` over all inputs that prompts give a text layer, ``(D, D)`` in float64.

    Args:
        backbone: The model that encodes the prompts.
        prompts: Any number of prompts.
        source: The layers whose input is read.
    """
    gram, _ = _gram_and_count(backbone, prompts, source)
    return gram


def mean_input_gram(
    backbone: Backbone, prompts: Sequence[str | Phrase], source: TextInput
) -> Tensor:
    """`input_gram` over the mean number of inputs of a prompt, ``(D, D)`` in float64.

    The positions of a prompt share its weight.
    """
    gram, count = _gram_and_count(backbone, prompts, source)
    return gram / (count / len(prompts))


def _gram_and_count(
    backbone: Backbone, prompts: Sequence[str | Phrase], source: TextInput
) -> tuple[Tensor, int]:
    """`input_gram`, and the number of inputs that are read."""
    gram = torch.zeros(source.width, source.width, dtype=torch.float64, device=backbone.device)
    count = 0
    for i in range(0, len(prompts), _CHUNK):
        conditioning = backbone.encode(prompts[i : i + _CHUNK])
        rows = source.rows(conditioning).flatten(0, 1).double()
        gram += rows.mT @ rows
        count += int(source.read(conditioning).sum())
    return gram, count
