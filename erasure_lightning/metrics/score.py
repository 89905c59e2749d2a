"""`Score`: figures of finished pictures, and how they came about."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.table import Table

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import read_record, write_json
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import short_hash


@dataclass(frozen=True)
class Score:
    """Figures of a folder of pictures.

    Args:
        estimates: By metric, and by ``before`` and ``after`` the edit; pictures that nobody edited
            count as ``after``.
        protocol: Everything they depend on besides the pictures' model: what was drawn, weights,
            thresholds, labels.
        versions: Of the libraries that make no difference to what is compared. Recorded, not
            compared.
    """

    estimates: Mapping[str, Mapping[str, Estimate]]
    protocol: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def identity(self) -> str:
        """A short hash, equal for equal protocols."""
        return short_hash(self.protocol)

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        estimates = {
            name: {when: e._asdict() for when, e in whens.items()}
            for name, whens in self.estimates.items()
        }
        protocol = {"identity": self.identity, **self.protocol}
        content = {"estimates": estimates, "protocol": protocol, "versions": dict(self.versions)}
        write_json(path, content)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ErasureError: If there is no such file, or it holds something else.
        """
        return read_record(path, "figures", "score", cls._made)

    @classmethod
    def _made(cls, content: dict[str, Any]) -> Self:
        estimates = {
            name: {when: Estimate(**e) for when, e in whens.items()}
            for name, whens in content["estimates"].items()
        }
        return cls(estimates, content["protocol"], content["versions"])


def check_comparable(scores: Mapping[str, Score]) -> None:
    """Raise unless all scores came about in one way.

    Args:
        scores: By the name of what was scored.

    Raises:
        ErasureError: Naming the first thing in which two differ.
    """
    (name, first), *others = scores.items()
    for other, score in others:
        mine, theirs = _flat(first.protocol), _flat(score.protocol)
        for key in dict.fromkeys([*mine, *theirs]):
            a, b = mine.get(key, "none"), theirs.get(key, "none")
            if a != b:
                raise ErasureError(
                    f"{name} and {other} were scored differently and cannot be compared. They"
                    f" differ in {key}: {a!r} and {b!r}. Score both with the same metrics, weights"
                    " and prompts."
                )


def _flat(values: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= (
            _flat(value, f"{inside}{name}.")
            if isinstance(value, Mapping)
            else {f"{inside}{name}": value}
        )
    return found


def table(scores: dict[str, Score]) -> Table:
    """Scores side by side: each metric before, and after by the name of what was scored."""
    first = next(iter(scores.values()))
    made = Table(
        "",
        "before",
        *(name or "after" for name in scores),
        caption=f"95 % intervals; protocol {first.identity}",
    )
    for metric, whens in first.estimates.items():
        before = str(whens["before"]) if "before" in whens else ""
        made.add_row(
            metric, before, *(str(score.estimates[metric]["after"]) for score in scores.values())
        )
    return made
