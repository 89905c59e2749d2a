"""Suites: the methods, concepts, seeds and attacks that a benchmark crosses."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from erasure_lightning.concepts.concept import Concept
from erasure_lightning.files.differences import first_difference
from erasure_lightning.files.earlier_names import renamed_suite
from erasure_lightning.runs.folder import slug


@dataclass(frozen=True)
class MethodEntry:
    """A method of a benchmark, with its config.

    Args:
        name: Its name in tables; by default its config's name.
        config: The content of a config of ``erasure fit``.
        options: Further options of ``erasure fit``, such as ``model.lr: 1e-4``.
    """

    name: str
    config: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class ConceptEntry:
    """Concepts of a benchmark that are erased together.

    Args:
        name: Their name in tables.
        erase: The concepts; in a suite's YAML a list, a file, or the fields of a single one in the
            entry itself.
        neighbours: Names of things close to them that must be retained.
    """

    name: str
    erase: tuple[Concept, ...]
    neighbours: tuple[str, ...]

    @property
    def group(self) -> str:
        """``thing``, ``domain`` for several things, or ``style``."""
        if any(concept.kind == "style" for concept in self.erase):
            return "style"
        return "domain" if len(self.erase) > 1 else "thing"


@dataclass(frozen=True)
class AttackEntry:
    """An attack of a benchmark, on every edit.

    Args:
        attack: Its class name or class path.
        options: Further options of ``erasure attack``.
    """

    attack: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Its class name."""
        return self.attack.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Suite:
    """A benchmark's content: each method erases each entry's concepts with each seed.

    Args:
        name: The benchmark's name, and by default its folder's.
        backbone: The model that is edited.
        methods: The methods.
        concepts: The concepts.
        attacks: The attacks on every edit.
        seeds: Seeds of training.
        options: Options of every ``erasure fit``, such as ``data.seeds: 2``.
    """

    name: str
    backbone: str
    methods: tuple[MethodEntry, ...]
    concepts: tuple[ConceptEntry, ...]
    attacks: tuple[AttackEntry, ...]
    seeds: tuple[int, ...]
    options: dict[str, Any]

    def content(self) -> dict[str, Any]:
        """The suite as a mapping for YAML, with every config and concept written out.

        `SuiteReader` reads an equal suite from it.
        """
        concepts = [
            {
                "name": entry.name,
                "erase": [asdict(concept) for concept in entry.erase],
                "neighbours": list(entry.neighbours),
            }
            for entry in self.concepts
        ]
        return {
            "name": self.name,
            "backbone": self.backbone,
            "seeds": list(self.seeds),
            "options": self.options,
            "methods": [asdict(method) for method in self.methods],
            "concepts": concepts,
            "attacks": [asdict(attack) for attack in self.attacks],
        }

    def difference(self, other: "Suite") -> str:
        """The first difference by which two suites could not share a folder; empty without one.

        Entries and seeds may be added and removed; entries with one folder must be equal.
        """
        mine = self._entries()
        theirs = other._entries()
        shared = [place for place in mine if place in theirs]
        return first_difference(
            *({mine[place][0]: entries[place][1] for place in shared} for entries in (mine, theirs))
        )

    def with_entries_of(self, other: "Suite") -> "Suite":
        """The suite, behind whose entries are those of another whose folders it does not name."""
        added: dict[str, Any] = {}
        for key in ("methods", "concepts", "attacks"):
            own = getattr(self, key)
            folders = {slug(entry.name) for entry in own}
            more = [entry for entry in getattr(other, key) if slug(entry.name) not in folders]
            added[key] = (*own, *more)
        return replace(self, **added)

    def _entries(self) -> dict[tuple[str, str], tuple[str, Any]]:
        """Name and content of each entry, by its key and its folder; of other keys without one."""
        content = renamed_suite(self.content())
        entries = {(key, ""): (key, content[key]) for key in ("name", "backbone", "options")}
        for key in ("methods", "concepts", "attacks"):
            for entry, plain in zip(getattr(self, key), content[key], strict=True):
                entries[key, slug(entry.name)] = (f"{key}.{entry.name}", plain)
        return entries
