"""How something was measured: figures are comparable if their protocols are equal, and refused if
they are not.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import read_record, write_json
from erasure_lightning.metrics.estimates import Estimate

#: What is recorded but does not make two protocols differ: paths differ between machines,
#: fingerprints do not.
RECORDED = ("backbone", "scorer", "versions")

#: Estimates by group (``efficacy``), metric (``recognized``), and ``before`` or ``after`` the edit.
Estimates = Mapping[str, Mapping[str, Mapping[str, Estimate]]]


@dataclass(frozen=True)
class Protocol:
    """Everything that figures depend on besides the edit.

    Args:
        prompts: Prompts of each group, sorted.
        seeds: Seeds each prompt was drawn with, sorted.
        steps: Sampling steps.
        guidance: Scale of classifier-free guidance.
        size: Height and width of the pictures in pixels.
        sampler: Class of the sampler.
        scorer_fingerprint: Of the scorer's weights, empty without a scorer.
        backbone_fingerprint: Of the original model's weights.
        vocabulary: Short hash of the labels that pictures are told apart by.
        backbone, scorer: What the user called the two. Recorded, not compared.
        versions: Of the packages. Recorded, not compared.
    """

    prompts: dict[str, list[str]]
    seeds: list[int]
    steps: int
    guidance: float
    size: int
    sampler: str
    scorer_fingerprint: str
    backbone_fingerprint: str
    vocabulary: str
    backbone: str
    scorer: str
    versions: dict[str, str]

    @property
    def compared(self) -> dict[str, Any]:
        """The fields that make two protocols equal."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in RECORDED}

    @property
    def identity(self) -> str:
        """A short hash, equal for equal protocols."""
        return short_hash(self.compared)

    def difference(self, other: "Protocol") -> str:
        """The first field in which another protocol differs, with both values; empty if there is
        none.
        """
        mine, theirs = _flat(self.compared), _flat(other.compared)
        for name in dict.fromkeys([*mine, *theirs]):
            a, b = mine.get(name), theirs.get(name)
            if a != b:
                return f"{name}: {_brief(a, b)} and {_brief(b, a)}"
        return ""


def short_hash(value: Any) -> str:
    """Of anything JSON holds, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every group of prompts as a field of its own."""
    prompts = {f"prompts of {group}": texts for group, texts in values["prompts"].items()}
    return prompts | {name: value for name, value in values.items() if name != "prompts"}


def _brief(value: Any, other: Any) -> str:
    """A value for a message; of a long list what the other lacks, at most three of it."""
    if not isinstance(value, list):
        return "none" if value is None else repr(value)
    own = [item for item in value if item not in (other or [])]
    dots = ", ..." if len(own) > 3 else ""
    return ", ".join(map(repr, own[:3])) + dots if own else f"{len(value)} in all"


@dataclass(frozen=True)
class Result:
    """What was measured of an edit, and how.

    Args:
        protocol: How.
        edit: Method, concepts, arguments and versions of the edit.
        estimates: What, by group, metric, and before or after.
    """

    protocol: Protocol
    edit: dict[str, Any]
    estimates: Estimates

    def overall(self, when: str) -> float | None:
        """Harmonic mean of what should be high: 1 - efficacy, 1 - generality, specificity.

        A group that was not measured is left out; ``None`` without efficacy or specificity.
        """
        share = {
            g: m["recognized"][when].mean for g, m in self.estimates.items() if "recognized" in m
        }
        if not {"efficacy", "specificity"} <= share.keys():
            return None
        terms = [1 - share[group] for group in ("efficacy", "generality") if group in share] + [
            share["specificity"]
        ]
        return len(terms) / sum(1 / term for term in terms) if min(terms) > 0 else 0.0

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        estimates = {
            group: {m: {w: e._asdict() for w, e in whens.items()} for m, whens in metrics.items()}
            for group, metrics in self.estimates.items()
        }
        overall = {when: self.overall(when) for when in ("before", "after")}
        protocol = {"identity": self.protocol.identity, **asdict(self.protocol)}
        content = {
            "edit": self.edit,
            "overall": overall,
            "estimates": estimates,
            "protocol": protocol,
        }
        write_json(path, content)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ErasureError: If there is no such file, or it holds something else.
        """
        return read_record(path, "figures", "test", cls._made)

    @classmethod
    def _made(cls, content: dict[str, Any]) -> Self:
        estimates = {
            group: {m: {w: Estimate(**e) for w, e in whens.items()} for m, whens in metrics.items()}
            for group, metrics in content["estimates"].items()
        }
        return cls(Protocol(**content["protocol"]), content["edit"], estimates)


class Row(NamedTuple):
    """One figure of several edits.

    Args:
        group: What was asked for.
        metric: What was measured of it.
        before: Of the original model, ``None`` where only changes are measured.
        after: Of each edit, by name.
    """

    group: str
    metric: str
    before: Estimate | None
    after: dict[str, Estimate]


def compare(results: Mapping[str, Result]) -> list[Row]:
    """Put the figures of edits side by side.

    Args:
        results: At least one, by the name of the edit.

    Raises:
        ErasureError: If two were measured differently, naming the first field that differs. Edits
            of different concepts are asked different prompts, so that they cannot be compared
            either.
    """
    if not results:
        raise ErasureError("A comparison needs the figures of at least one edit; found none.")
    (name, first), *others = results.items()
    for other, result in others:
        if difference := first.protocol.difference(result.protocol):
            raise ErasureError(
                f"{name} and {other} were measured differently and cannot be compared. They differ"
                f" in {difference}. Measure both with the same data, seeds, scorer and base model."
            )
    return [
        Row(
            group,
            metric,
            whens.get("before"),
            {n: r.estimates[group][metric]["after"] for n, r in results.items()},
        )
        for group, metrics in first.estimates.items()
        for metric, whens in metrics.items()
    ]
