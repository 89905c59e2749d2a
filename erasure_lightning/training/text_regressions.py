"""Closed-form edits of a model's text inputs."""

from collections.abc import Callable

from torch import Tensor

from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.regression import Regression


def solve_text_inputs(
    module: ErasureModule, fill: Callable[[Regression, TextInput], None], ridge: float
) -> dict[str, Tensor]:
    """New weights of every text input of the original, each by normal equations of its own.

    Args:
        module: The method, whose retention callbacks hold states in all equations.
        fill: Adds the method's terms to the equations of a text input.
        ridge: Weight of the distance from the old weights, above 0.
    """
    solution: dict[str, Tensor] = {}
    for source in module.original.text_inputs():
        equations = Regression(module.retention_gram(source))
        fill(equations, source)
        solution |= source.named(equations.solve(source.weights(), ridge))
    return solution
