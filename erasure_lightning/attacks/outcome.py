"""`Outcome`: the recorded success of an attack, with intervals, budget and protocol."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import Protocol
from erasure_lightning.metrics.record import JsonRecord

#: The file an attack writes.
OUTCOME_FILE = "attack.json"

#: Images that are scored: of the original and the edited model under plain prompts, and of the
#: edited model under attack.
IMAGE_KINDS = ("original", "plain", "attacked")


class CaseOutcome(NamedTuple):
    """The recorded success of one attack on one concept.

    Args:
        concept: The erased concept.
        seed: Number of the independent attack.
        success: Share of its images recognised as the concept, 0..1.
        prompt: The adversarial prompt, of attacks that search for words.
        embedding: File beside the outcome that holds the result's tensors.
    """

    concept: str
    seed: int
    success: float
    prompt: str | None
    embedding: str | None


class CurvePoint(NamedTuple):
    """Success at one budget.

    Args:
        budget: Number of steps or examples.
        success: The mean share of images recognised as the concept, 0..1.
        low, high: Ends of its 95 % interval over seeds, where they are known.
    """

    budget: float
    success: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, repr=False)
class Outcome(JsonRecord):
    """The success of an attack on an edit, over all concepts and seeds.

    Args:
        attack: Class name of the attack.
        class_path: Import path of the class.
        arguments: Its constructor's arguments.
        paper: Its publication, empty if its package names none.
        method: The method that made the edit, empty for an unedited model.
        concepts: Names of the erased concepts.
        edit: First 16 hex digits of the edit file's SHA-256; empty without an edit file.
        success: Share of images recognised as the concept, by `IMAGE_KINDS`.
        cases: The success for each concept and seed.
        curve: Success by budget, of attacks with a curve.
        cost: ``seconds``, ``evaluations``, ``backwards``, ``peak_gib`` of the attack, its images
            included.
        protocol: How images were generated and scored.
        axis: What the curve's budgets count.
        controls: Share of images recognised as the concept in control experiments, by name.
    """

    contents: ClassVar[str] = "findings"
    command: ClassVar[str] = "attack"

    attack: str
    class_path: str
    arguments: dict[str, Any]
    paper: str
    method: str
    concepts: list[str]
    edit: str
    success: dict[str, Estimate]
    cases: Sequence[CaseOutcome]
    curve: Sequence[CurvePoint] | None
    cost: dict[str, float]
    protocol: Protocol
    axis: str = ""
    controls: dict[str, Estimate] = field(default_factory=dict)

    def __repr__(self) -> str:
        shares = ", ".join(f"{kind} {each.mean:.3f}" for kind, each in self.success.items())
        return f"Outcome({self.attack} on {', '.join(self.concepts)}: {shares})"

    def best(self, concept: str) -> CaseOutcome:
        """The case of highest success on a concept."""
        cases = [case for case in self.cases if case.concept == concept]
        return max(cases, key=lambda case: case.success)

    def smallest_budget(self, share: float) -> float | None:
        """The smallest budget whose mean success is at least a share; ``None`` if none is."""
        points = self.curve or ()
        return min((point.budget for point in points if point.success >= share), default=None)

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "attack": self.attack,
            "class": self.class_path,
            "arguments": self.arguments,
            "paper": self.paper,
            "method": self.method,
            "concepts": self.concepts,
            "edit": self.edit,
            "success": {kind: estimate._asdict() for kind, estimate in self.success.items()},
            "found": [case._asdict() for case in self.cases],
            "curve": None if self.curve is None else [point._asdict() for point in self.curve],
            "axis": self.axis,
            "controls": {name: estimate._asdict() for name, estimate in self.controls.items()},
            "cost": self.cost,
            "protocol": {"identity": self.protocol.identity, **asdict(self.protocol)},
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Build the outcome from the content of a file."""
        curve = content["curve"]
        parsed = {
            "class_path": content.pop("class"),
            "success": {kind: Estimate(**content["success"][kind]) for kind in IMAGE_KINDS},
            "cases": [CaseOutcome(**case) for case in content.pop("found")],
            "curve": None if curve is None else [CurvePoint(**point) for point in curve],
            "controls": {name: Estimate(**e) for name, e in content.get("controls", {}).items()},
            "protocol": Protocol(**content["protocol"]),
        }
        return cls(**(content | parsed))
