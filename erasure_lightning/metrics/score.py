"""`Score`: metrics of finished images with the protocol that produced them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from rich.table import Table

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.differences import first_difference
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import short_hash
from erasure_lightning.metrics.record import JsonRecord


@dataclass(frozen=True)
class Score(JsonRecord):
    """Metrics of a folder of images.

    Args:
        estimates: By metric, and by ``before`` and ``after`` the edit; images of a plain folder
            count as ``after``.
        protocol: Prompts, weights, thresholds and labels: all that the metrics depend on besides
            the model that generated the images.
        versions: Versions of the libraries. Recorded, not compared.
    """

    contents: ClassVar[str] = "figures"
    command: ClassVar[str] = "score"

    estimates: Mapping[str, Mapping[str, Estimate]]
    protocol: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def identity(self) -> str:
        """A short hash, equal for equal protocols."""
        return short_hash(self.protocol)

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        estimates = {
            metric: {when: estimate._asdict() for when, estimate in by_stage.items()}
            for metric, by_stage in self.estimates.items()
        }
        protocol = {"identity": self.identity, **self.protocol}
        return {"estimates": estimates, "protocol": protocol, "versions": dict(self.versions)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Build the score from the content of a file."""
        estimates = {
            metric: {when: Estimate(**estimate) for when, estimate in by_stage.items()}
            for metric, by_stage in content["estimates"].items()
        }
        return cls(estimates, content["protocol"], content["versions"])


def check_comparable(scores: Mapping[str, Score]) -> None:
    """Raise unless all scores have one protocol.

    Args:
        scores: Scores by the name of what was scored.

    Raises:
        ErasureError: Naming the first field in which two differ.
    """
    (name, first), *others = scores.items()
    for other_name, score in others:
        if difference := first_difference(first.protocol, score.protocol):
            raise ErasureError(
                f"{name} and {other_name} were scored differently and cannot be compared. They"
                f" differ in {difference}. Score both with the same metrics, weights and prompts."
            )


def score_table(scores: dict[str, Score]) -> Table:
    """Scores side by side: a row a metric, before, and after by the name of what was scored."""
    first = next(iter(scores.values()))
    names = [name or "after" for name in scores]
    caption = f"95 % intervals; protocol {first.identity}"
    table = Table("", "before", *names, caption=caption)
    for metric, by_stage in first.estimates.items():
        before = by_stage["before"].two_lines() if "before" in by_stage else ""
        after = [score.estimates[metric]["after"].two_lines() for score in scores.values()]
        table.add_row(metric, before, *after)
    return table
