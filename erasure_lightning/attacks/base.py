"""Base classes of attacks, which try to recover an erased concept from an edited model."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.backbones.interface import Capability
from erasure_lightning.checks import require, require_seed
from erasure_lightning.edits.format import plain_values
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.backbone_checks import check_capabilities


@dataclass(frozen=True)
class AttackResult:
    """Images that an attack generated for one case, and what produced them.

    Args:
        images: Images that the attacked model generates at the case's seeds, ``(N, 3, H, W)`` in
            0..1.
        prompt: The adversarial prompt, of attacks that search for words.
        tensors: Embeddings, latents and the like that are saved with the result, by name.
        curve: Images like ``images`` by budget (steps, examples), rising, of attacks whose budget
            grows.
        controls: Images like ``images`` of control experiments, by name.
    """

    images: Tensor
    prompt: str | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    curve: Mapping[float, Tensor] = field(default_factory=dict)
    controls: Mapping[str, Tensor] = field(default_factory=dict)


class Attack(ABC):
    """An attempt to recover erased concepts; its budget is its constructor's arguments.

    Every argument of a constructor must be an attribute of the same name, since the outcome
    records them.

    Args:
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If the seed is out of a generator's range.
    """

    #: Capabilities of a model family that the attack uses beyond predictions.
    needs: ClassVar[frozenset[Capability]] = frozenset()
    #: What the budgets of the curve count.
    axis: ClassVar[str] = ""

    def __init__(self, *, seed: int = 0) -> None:
        require_seed(type(self).__name__, seed=seed)
        self.seed = seed

    def run(self, target: AttackTarget, seed: int) -> list[AttackResult]:
        """Attack once: the results for the cases of one of the target's seeds, in their order.

        Equal arguments give equal results. The state of torch's global generator is restored.

        Raises:
            ErasureError: If the target's family lacks what the attack needs.
        """
        check_capabilities(type(target.edited), self.needs, type(self).__name__)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, seed))
            return self.search(target, target.cases(seed))

    @abstractmethod
    def search(self, target: AttackTarget, cases: Sequence[AttackCase]) -> list[AttackResult]:
        """A result for each case; random draws use torch's global generator, which is seeded.

        Args:
            target: The models under attack; must not be modified.
            cases: One for each concept.
        """

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        classes = [cls for cls in type(self).__mro__ if issubclass(cls, Attack)]
        names: dict[str, Any] = {}
        for cls in classes:
            for name, parameter in inspect.signature(cls.__init__).parameters.items():
                names[name] = parameter.kind
        return {
            name: plain_values(getattr(self, name))
            for name, kind in names.items()
            if name != "self" and kind is not inspect.Parameter.VAR_KEYWORD
        }


def check_at_least(attack: Attack, **bounds: float) -> None:
    """Raise if an argument of an attack is below its lower bound.

    Raises:
        ErasureError: Naming the first that is.
    """
    for name, bound in bounds.items():
        require(type(attack).__name__, at_least=bound, **{name: getattr(attack, name)})


def check_each_at_least(attack: Attack, **bounds: float) -> None:
    """Raise if a list of numbers of an attack is empty, or one of them below its lower bound.

    Raises:
        ErasureError: Naming the first that is.
    """
    owner = type(attack).__name__
    for name, bound in bounds.items():
        numbers = getattr(attack, name)
        if not numbers:
            raise ErasureError(f"{owner} needs {name}, at least one number; found an empty list.")
        for number in numbers:
            require(owner, at_least=bound, **{name: number})


def descend(optimizer: Optimizer, loss: Tensor) -> None:
    """Take an optimizer step; only the optimizer's parameters receive gradients.

    The target's weights receive none, even where they require gradients.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


class ConceptAttack(Attack):
    """An attack that treats each concept separately."""

    def search(self, target: AttackTarget, cases: Sequence[AttackCase]) -> list[AttackResult]:
        """A result for each case, independent of the other cases."""
        results = []
        for case in cases:
            torch.manual_seed(derive_seed(self.seed, *case.concept.name.encode(), case.seed))
            results.append(self.find(target, case))
        return results

    @abstractmethod
    def find(self, target: AttackTarget, case: AttackCase) -> AttackResult:
        """The result for one case."""
