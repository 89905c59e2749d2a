"""Low-rank adapters of several concepts, each applied to the rows of its own concept.

They are not part of the model, whose layers and their names stay as they are. peft takes quadratic
time to wrap the layers (9 s for a hundred sets on 14 of them) and trains one set at a time; here a
set is two parameters.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class ConceptAdapters(nn.Module):
    """A change ``dW_i = B_i A_i`` of every layer for each concept; zero at initialisation.

    Args:
        layers: Linear maps of one input width ``D``, of ``out`` outputs in all.
        concepts: Number of sets.
        rank: Rank of each change, at least 1.
    """

    def __init__(self, layers: Collection[nn.Linear], concepts: int, rank: int) -> None:
        super().__init__()
        self.widths = [layer.out_features for layer in layers]
        like = next(iter(layers)).weight.detach()
        down = (len(layers), rank, like.shape[1])
        up = (sum(self.widths), rank)
        self.down = nn.ParameterList([torch.randn(down).to(like) / rank for _ in range(concepts)])
        self.up = nn.ParameterList([torch.zeros(up).to(like) for _ in range(concepts)])

    @contextmanager
    def beside(self, layers: Collection[nn.Linear], concepts: Sequence[int]) -> Iterator[None]:
        """Context in which row ``b`` of a layer's input also passes ``dW`` of ``concepts[b]``.

        Args:
            layers: The layers, in the order of the constructor's.
            concepts: Number of each row's concept, ``B`` of them.
        """
        downs = torch.stack([self.down[i] for i in concepts]).unbind(1)
        ups = torch.stack([self.up[i] for i in concepts]).split_with_sizes(self.widths, dim=1)
        with ExitStack() as hooks:
            for layer, down, up in zip(layers, downs, ups, strict=True):
                hooks.callback(layer.register_forward_hook(_adding(down, up)).remove)
            yield

    def fused(
        self,
        weights: Tensor,
        original: Tensor,
        retained: Tensor,
        grams: Iterable[Tensor],
        ridge: float,
    ) -> Tensor:
        """One set of weights for all concepts (MACE's fusion), ``(out, D)`` in float64.

        It minimises ``sum_i sum_k |(W - W' - dW_i) k|^2 + sum_p |(W - W*) p|^2 + ridge |W -
        W'|^2``, so it is ``W' + (sum_i dW_i G_i + (W* - W') P) (sum_i G_i + P + ridge I)^-1``: one
        factorisation for all layers.

        Args:
            weights: ``W'``, on which the adapters were trained, ``(out, D)``.
            original: ``W*``, whose images of what is retained are the target, ``(out, D)``.
            retained: ``P = sum p p^T`` of what is retained, ``(D, D)`` in float64.
            grams: ``G_i = sum k k^T`` of the inputs on which the change of concept ``i`` acts, in
                the order of the concepts.
            ridge: Above 0.
        """
        start = weights.double()
        gram = retained.clone()
        pull = (original.double() - start) @ retained
        for down, up, concept_gram in zip(self.down, self.up, grams, strict=True):
            gram += concept_gram
            a_times_gram = down.double() @ concept_gram
            b_of_layers = up.double().split_with_sizes(self.widths)
            pull += torch.cat([b @ a for b, a in zip(b_of_layers, a_times_gram, strict=True)])
        gram.diagonal().add_(ridge)
        change: Tensor = torch.linalg.solve(gram, pull, left=False)
        return start + change


def _adding(down: Tensor, up: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """A hook that adds the product of ``up`` ``(B, out, r)`` and ``down`` ``(B, r, D)``."""
    return lambda layer, inputs, output: output + inputs[0] @ down.mT @ up.mT
