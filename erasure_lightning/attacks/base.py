"""`Attack` and its commonest shape: something that tries to get an erased concept out of an edited
model.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from erasure_lightning.attacks.target import Case, Target
from erasure_lightning.checks import require, require_seed
from erasure_lightning.edits.edit import plain_values
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed


@dataclass(frozen=True)
class Found:
    """What an attack found for one case.

    Args:
        pictures: What the attacked model drew at the case's seeds, ``(N, 3, H, W)`` in 0..1.
        prompt: The words that were asked with, where the attack found words.
        tensors: What else is worth keeping (embeddings, latents), by name.
        curve: Pictures like ``pictures`` by the budget (steps, examples) they took, rising, where
            the attack tells.
        controls: Pictures like ``pictures`` of what the attack is to be told apart from, by name.
    """

    pictures: Tensor
    prompt: str | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    curve: Mapping[float, Tensor] = field(default_factory=dict)
    controls: Mapping[str, Tensor] = field(default_factory=dict)


class Attack(ABC):
    """Tries to bring concepts back; its budget is its arguments.

    Every argument of a constructor is kept as an attribute of the same name, from which results are
    labelled.

    Args:
        seed: Of everything the attack draws.

    Raises:
        ErasureError: If the seed is none that a generator takes.
    """

    #: What the budgets of its curve count.
    axis: ClassVar[str] = ""

    def __init__(self, *, seed: int = 0) -> None:
        require_seed(type(self).__name__, seed=seed)
        self.seed = seed

    def run(self, target: Target, seed: int) -> list[Found]:
        """Attack once: the findings for the cases of one of the target's seeds, in their order.

        Equal arguments give equal findings, and leave torch's global generator as it was.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, seed))
            return self.search(target, target.cases(seed))

    @abstractmethod
    def search(self, target: Target, cases: Sequence[Case]) -> list[Found]:
        """A finding for each case; what is drawn by lot comes from torch's global generator, which
        is seeded.

        Args:
            target: Whom to attack; it must be left as it was.
            cases: One a concept.
        """

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        signatures = [
            inspect.signature(cls.__init__) for cls in type(self).__mro__ if issubclass(cls, Attack)
        ]
        names = {
            name: p.kind for signature in signatures for name, p in signature.parameters.items()
        }
        named = [
            n
            for n, kind in names.items()
            if n != "self" and kind is not inspect.Parameter.VAR_KEYWORD
        ]
        return {name: plain_values(getattr(self, name)) for name in named}


def check_at_least(attack: Attack, **bounds: float) -> None:
    """Raise unless an attack's arguments reach their bounds.

    Raises:
        ErasureError: Naming the first that does not.
    """
    for name, least in bounds.items():
        require(type(attack).__name__, at_least=least, **{name: getattr(attack, name)})


def check_threshold(threshold: float) -> None:
    """Raise unless it is a share at which a concept can count as back.

    Raises:
        ErasureError: If it is not in 0..1.
    """
    if not 0 <= threshold <= 1:
        raise ErasureError(
            f"An attack needs a threshold of 0 to 1, a share of pictures; found {threshold:g}."
        )


def descend(optimizer: Optimizer, loss: Tensor) -> None:
    """A step of what an attack optimises; nothing else gets a gradient, whatever the target's
    weights ask for.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = slope
    optimizer.step()


class ConceptAttack(Attack):
    """An attack that takes one concept after the other."""

    def search(self, target: Target, cases: Sequence[Case]) -> list[Found]:
        """A finding for each case, whatever the other cases are."""
        found = []
        for case in cases:
            torch.manual_seed(derive_seed(self.seed, *case.concept.name.encode(), case.seed))
            found.append(self.find(target, case))
        return found

    @abstractmethod
    def find(self, target: Target, case: Case) -> Found:
        """The finding for one case."""
