"""`Outcome`: what an attack brought back, how sure that is, and how it was asked; as a file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from erasure_lightning.files.writing import read_record, write_json
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import Protocol

#: The file an attack writes.
OUTCOME_FILE = "attack.json"

#: Whose pictures are looked at: the original model's and the edited model's with plain prompts, the
#: latter's attacked.
ASKED = ("original", "plain", "attacked")


class Finding(NamedTuple):
    """What one attack on one concept found.

    Args:
        concept: What was to come back.
        seed: Which of the independent attacks it was.
        success: Share of its pictures recognised as the concept, 0..1.
        prompt: The words it found, if it looks for words.
        embedding: The file beside the outcome that holds what else it found.
    """

    concept: str
    seed: int
    success: float
    prompt: str | None
    embedding: str | None


class Point(NamedTuple):
    """One point of a curve: the share of pictures recognised after so many steps or examples.

    Args:
        budget: How many.
        success: The mean share, 0..1.
        low, high: Ends of its 95 % interval over seeds, where they are known.
    """

    budget: float
    success: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What an attack brought back.

    Args:
        attack: Class name of the attack.
        class_path: Where the class is.
        arguments: Its constructor's arguments.
        paper: Where it was published, empty where its package does not say.
        method: What made the edit, empty for an unedited model.
        concepts: What was erased.
        edit: The edit file's SHA-256, its first 16 hex digits; empty where there is none.
        success: Share of pictures recognised as the concept, by `ASKED`.
        found: A finding for each concept and seed.
        curve: Success by budget, of attacks that tell.
        cost: ``seconds``, ``evaluations``, ``backwards``, ``peak_gib`` of the attack, its pictures
            included.
        protocol: How pictures were drawn and judged.
        axis: What the curve's budgets count.
        controls: Share of pictures recognised of what the attack is to be told apart from, by name.
    """

    attack: str
    class_path: str
    arguments: dict[str, Any]
    paper: str
    method: str
    concepts: list[str]
    edit: str
    success: dict[str, Estimate]
    found: Sequence[Finding]
    curve: Sequence[Point] | None
    cost: dict[str, float]
    protocol: Protocol
    axis: str = ""
    controls: dict[str, Estimate] = field(default_factory=dict)

    def best(self, concept: str) -> Finding:
        """The finding that brought most of a concept back."""
        return max((f for f in self.found if f.concept == concept), key=lambda f: f.success)

    def least(self, share: float) -> float | None:
        """The smallest budget whose mean success reaches a share; ``None`` if none does or there is
        no curve.
        """
        return min(
            (point.budget for point in self.curve or () if point.success >= share), default=None
        )

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        content = {
            "attack": self.attack,
            "class": self.class_path,
            "arguments": self.arguments,
            "paper": self.paper,
            "method": self.method,
            "concepts": self.concepts,
            "edit": self.edit,
            "success": {asked: estimate._asdict() for asked, estimate in self.success.items()},
            "found": [finding._asdict() for finding in self.found],
            "curve": None if self.curve is None else [point._asdict() for point in self.curve],
            "axis": self.axis,
            "controls": {name: estimate._asdict() for name, estimate in self.controls.items()},
            "cost": self.cost,
            "protocol": {"identity": self.protocol.identity, **asdict(self.protocol)},
        }
        write_json(path, content)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ErasureError: If there is no such file, or it holds something else.
        """
        return read_record(path, "findings", "attack", cls._made)

    @classmethod
    def _made(cls, content: dict[str, Any]) -> Self:
        read = {
            "class_path": content.pop("class"),
            "success": {asked: Estimate(**content["success"][asked]) for asked in ASKED},
            "found": [Finding(**finding) for finding in content["found"]],
            "curve": (
                None if content["curve"] is None else [Point(**point) for point in content["curve"]]
            ),
            "controls": {name: Estimate(**e) for name, e in content.get("controls", {}).items()},
            "protocol": Protocol(**content["protocol"]),
        }
        return cls(**(content | read))
