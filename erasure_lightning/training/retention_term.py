"""`RetentionTerm`: the part of a retention callback that a module uses."""

from typing import Any, Protocol

from torch import Tensor

from erasure_lightning.backbones.interface import TextInput


class RetentionTerm(Protocol):
    """A weighted term of the loss, or text states whose outputs a closed form retains."""

    #: Weight of the term, or of each retained prompt in a closed form.
    weight: float
    #: Whether the term retains states of the text encoder alone.
    of_states: bool
    #: The retained prompts.
    retained: list[str]

    @property
    def label(self) -> str:
        """Name of the term in logs, different for each callback of a module."""

    def weight_at(self, step: int) -> float:
        """Weight of the term at a step, counted from 0."""

    def term(self, module: Any) -> Tensor:
        """The unweighted term, a scalar."""

    def gram(self, module: Any, source: TextInput) -> Tensor:
        """Gram matrix ``(D, D)``, in float64, of the inputs whose outputs a closed form retains."""
