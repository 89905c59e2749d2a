"""`Protocol` and `Result`: metrics of an edit, comparable only under equal protocols."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations
from typing import Any, ClassVar, NamedTuple, Self

from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.record import JsonRecord

# Recorded fields that do not make two protocols differ: paths differ between machines, fingerprints
# do not.
_NOT_COMPARED = ("backbone", "scorer", "versions")

#: Estimates by group (``efficacy``), metric (``recognized``), and ``before`` or ``after`` the edit.
Estimates = Mapping[str, Mapping[str, Mapping[str, Estimate]]]


@dataclass(frozen=True)
class Protocol:
    """All that metrics depend on besides the edit.

    Args:
        prompts: Prompts of each group, sorted.
        seeds: Seeds of each prompt, sorted.
        steps: Sampling steps.
        guidance: Scale of classifier-free guidance.
        size: Height and width of the images in pixels.
        sampler: Class of the sampler.
        scorer_fingerprint: Hash of the scorer's weights, empty without a scorer.
        backbone_fingerprint: Hash of the original model's weights.
        vocabulary: Short hash of the candidate labels of images.
        backbone, scorer: The user's names of the two. Recorded, not compared.
        versions: Versions of the packages. Recorded, not compared.
        precision: The trainer's, in which the models compute; files without it are of ``32-true``.
        sampler_settings: Settings of the sampler by name; empty in older files. Those that one of
            two protocols lacks do not make them differ.
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
    precision: str = "32-true"
    sampler_settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = json.loads(json.dumps(self.sampler_settings, default=str))  # as in a file
        object.__setattr__(self, "sampler_settings", settings)

    @property
    def compared(self) -> dict[str, Any]:
        """The fields that make two protocols equal."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_COMPARED}

    @property
    def identity(self) -> str:
        """A short hash, equal for equal protocols."""
        return short_hash(self.compared)

    def difference(self, other: "Protocol") -> str:
        """The first field in which another protocol differs, with both values; empty if equal."""
        common = self.sampler_settings.keys() & other.sampler_settings.keys()
        ours, theirs = (_flat(protocol.compared, common) for protocol in (self, other))
        for name in dict.fromkeys([*ours, *theirs]):
            a = ours.get(name)
            b = theirs.get(name)
            if a != b:
                return f"{name}: {_brief(a, b)} and {_brief(b, a)}"
        return ""


def short_hash(value: Any) -> str:
    """Hash of a JSON value, independent of the order of keys, 16 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _flat(values: Mapping[str, Any], settings: Collection[str]) -> dict[str, Any]:
    """The fields, with each group of prompts and some settings as fields of their own."""
    prompts = {f"prompts of {group}": texts for group, texts in values["prompts"].items()}
    own = values["sampler_settings"]
    sampler = {f"{name} of the sampler": own[name] for name in sorted(settings)}
    rest = {n: value for n, value in values.items() if n not in ("prompts", "sampler_settings")}
    return prompts | rest | sampler


def _brief(value: Any, other: Any) -> str:
    """A value for a message; of a list at most three items that the other value lacks."""
    if not isinstance(value, list):
        return "none" if value is None else repr(value)
    own = [item for item in value if item not in (other or [])]
    if not own:
        return f"{len(value)} in all"
    dots = ", ..." if len(own) > 3 else ""
    return ", ".join(map(repr, own[:3])) + dots


@dataclass(frozen=True, repr=False)
class Result(JsonRecord):
    """Metrics of an edit, and their protocol.

    Args:
        protocol: How the edit was measured.
        edit: Method, concepts, arguments and versions of the edit.
        estimates: By group, metric, and ``before`` or ``after`` the edit.
    """

    contents: ClassVar[str] = "figures"
    command: ClassVar[str] = "test"

    protocol: Protocol
    edit: dict[str, Any]
    estimates: Estimates

    def __repr__(self) -> str:
        from erasure_lightning.edits.edit import edit_title  # imports torch

        figures = [
            f"{group} {' -> '.join(f'{e.mean:.3f}' for e in metrics['recognized'].values())}"
            for group, metrics in self.estimates.items()
            if "recognized" in metrics
        ]
        if not figures and "structure" in self.estimates:  # no scorer recognised anything
            distance = self.estimates["structure"]["distance"]["after"].mean
            figures.append(f"no scorer, distance of images {distance:.3f}")
        if (overall := self.overall("after")) is not None:
            figures.append(f"overall {overall:.3f}")
        return f"Result({edit_title(self.edit)}: {', '.join(figures)})"

    def overall(self, when: str) -> float | None:
        """Harmonic mean of 1 - efficacy, 1 - generality and specificity, 0..1.

        A group without measurements is left out; ``None`` without efficacy or specificity.

        Args:
            when: ``before`` or ``after`` the edit.
        """
        shares = {
            group: metrics["recognized"][when].mean
            for group, metrics in self.estimates.items()
            if "recognized" in metrics
        }
        if not {"efficacy", "specificity"} <= shares.keys():
            return None
        terms = [1 - shares[group] for group in ("efficacy", "generality") if group in shares]
        terms.append(shares["specificity"])
        return len(terms) / sum(1 / term for term in terms) if min(terms) > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        estimates = {
            group: {m: {w: e._asdict() for w, e in stages.items()} for m, stages in metrics.items()}
            for group, metrics in self.estimates.items()
        }
        return {
            "edit": self.edit,
            "overall": {when: self.overall(when) for when in ("before", "after")},
            "estimates": estimates,
            "protocol": {"identity": self.protocol.identity, **asdict(self.protocol)},
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Build the result from the content of a file."""
        estimates = {
            group: {
                m: {w: Estimate(**e) for w, e in stages.items()} for m, stages in metrics.items()
            }
            for group, metrics in content["estimates"].items()
        }
        return cls(Protocol(**content["protocol"]), content["edit"], estimates)


class ComparisonRow(NamedTuple):
    """One metric of several edits.

    Args:
        group: The group of prompts.
        metric: The metric.
        before: The original model's estimate, ``None`` for metrics of changes.
        after: The estimate of each edit, by name.
    """

    group: str
    metric: str
    before: Estimate | None
    after: dict[str, Estimate]


def compare_results(results: Mapping[str, Result]) -> list[ComparisonRow]:
    """The metrics of edits side by side.

    Args:
        results: At least one, by the name of the edit.

    Raises:
        ErasureError: If two have different protocols, naming the first field that differs. Edits of
            different concepts have different prompts, so they cannot be compared either.
    """
    if not results:
        raise ErasureError("A comparison needs the figures of at least one edit; found none.")
    # Each pair: two protocols may differ in what an older file between them lacks.
    for (name, first), (other, result) in combinations(results.items(), 2):
        if difference := first.protocol.difference(result.protocol):
            raise ErasureError(
                f"{name} and {other} were measured differently and cannot be compared. They differ"
                f" in {difference}. Measure both with the same data, seeds, scorer and base model."
            )
    rows = []
    for group, metrics in next(iter(results.values())).estimates.items():
        for metric, stages in metrics.items():
            after = {edit: r.estimates[group][metric]["after"] for edit, r in results.items()}
            rows.append(ComparisonRow(group, metric, stages.get("before"), after))
    return rows
