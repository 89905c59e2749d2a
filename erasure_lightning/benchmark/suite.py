"""`Suite`: what a benchmark compares, read from a YAML."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from erasure_lightning.concepts.concept import Concept, check_concepts
from erasure_lightning.concepts.files import read_entry
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.strict_yaml import read_yaml
from erasure_lightning.runs.folder import slug


@dataclass(frozen=True)
class MethodEntry:
    """A method as it is compared.

    Args:
        name: What tables call it; by default its config's name.
        config: The content of a config of ``erasure fit``.
        options: Options of ``erasure fit`` on top, ``model.lr: 1e-4``.
    """

    name: str
    config: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class ConceptEntry:
    """What is erased together.

    Args:
        name: What tables call it.
        erase: The concepts; in a suite's YAML one of them, its fields in the entry itself, or a
            file.
        neighbours: Things close to them that must stay.
    """

    name: str
    erase: tuple[Concept, ...]
    neighbours: tuple[str, ...]

    @property
    def group(self) -> str:
        """``thing``, ``domain`` of several things, or ``style``."""
        if any(concept.kind == "style" for concept in self.erase):
            return "style"
        return "domain" if len(self.erase) > 1 else "thing"


@dataclass(frozen=True)
class AttackEntry:
    """An attack that every edit is put to.

    Args:
        attack: Its class name, or its class path.
        options: Options of ``erasure attack`` on top.
    """

    attack: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """What tables call it: its class's name."""
        return self.attack.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Suite:
    """A benchmark: each method erases each entry's concepts with each seed, and each edit is put to
    each attack.

    Args:
        name: What it is called, and its folder.
        backbone: The model that all of them edit.
        methods, concepts, attacks: What is crossed.
        seeds: Of training.
        options: Options of every ``erasure fit``, ``data.seeds: 2``.
    """

    name: str
    backbone: str
    methods: tuple[MethodEntry, ...]
    concepts: tuple[ConceptEntry, ...]
    attacks: tuple[AttackEntry, ...]
    seeds: tuple[int, ...]
    options: dict[str, Any]

    def content(self) -> dict[str, Any]:
        """The suite as YAML says it, with every config and concept written out; read again it is
        the same suite.
        """
        return {
            "name": self.name,
            "backbone": self.backbone,
            "seeds": list(self.seeds),
            "options": self.options,
            "methods": [asdict(method) for method in self.methods],
            "concepts": [
                {
                    "name": c.name,
                    "erase": [asdict(one) for one in c.erase],
                    "neighbours": list(c.neighbours),
                }
                for c in self.concepts
            ],
            "attacks": [asdict(attack) for attack in self.attacks],
        }

    def difference(self, other: "Suite") -> str:
        """Where another suite, in one folder with this one, would make a cell of one name another;
        empty if nowhere.

        Entries and seeds may come and go; what is in both must be equal.
        """
        mine, theirs = _flat(self._named()), _flat(other._named())
        shared = self._named().keys() & other._named().keys()
        for key in dict.fromkeys([*mine, *theirs]):
            if key[0] in shared and mine.get(key) != theirs.get(key):
                return f"{'.'.join(key)}: {mine.get(key, 'none')} and {theirs.get(key, 'none')}"
        return ""

    def _named(self) -> dict[str, Any]:
        content = self.content()
        entries = {
            f"{kind}.{e['name']}": e for kind in ("methods", "concepts") for e in content[kind]
        }
        attacks = {f"attacks.{e['attack']}": e for e in content["attacks"]}
        return {key: content[key] for key in ("name", "backbone", "options")} | entries | attacks


def _flat(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Leaves by their paths; what is empty is a leaf."""
    inside = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    leaves = {k: v for name, child in inside for k, v in _flat(child, (*path, str(name))).items()}
    return leaves or {path: value}


#: What keys a mapping may have, each with its type.
_SUITE = {
    "name": str, "backbone": str, "methods": list, "concepts": list, "attacks": list, "seeds": list, "options": dict,
}  # fmt: skip
_METHOD = {"name": str, "config": (str, dict), "options": dict}
_CONCEPT = {
    "name": str,
    "erase": (str, list),
    "neighbours": list,
    "anchor": str,
    "domain": list,
    "kind": str,
}
_ATTACK = {"attack": str, "options": dict}

_TYPES = {str: "text", list: "a list", dict: "`key: value` lines", int: "a whole number"}


class Reader:
    """Turns a suite's YAML into a `Suite`.

    Args:
        config_of: The content of a config by its name.
        concepts_of: The concepts of a file by its name.
    """

    def __init__(
        self,
        config_of: Callable[[str], dict[str, Any]],
        concepts_of: Callable[[str], Iterable[Concept]],
    ) -> None:
        self.config_of = config_of
        self.concepts_of = concepts_of

    def read(self, path: Path) -> Suite:
        """The suite in a file.

        Raises:
            ErasureError: If the file is missing or no YAML; if a key is unknown, missing or of
                another type, with its place; if a config or a file of concepts is missing; if two
                entries would share a folder.
        """
        try:
            given = read_yaml(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise ErasureError(
                f"{path}{where}: no valid YAML ({getattr(error, 'problem', error)})."
            ) from error
        except OSError as error:
            raise ErasureError(f"{path} could not be read: {error.strerror}.") from error
        try:
            return self._suite(given, path.stem)
        except ErasureError as error:
            raise ErasureError(f"{path}: {error}") from error

    def _suite(self, given: Any, stem: str) -> Suite:
        _check(given, _SUITE, "the suite", needed=("methods", "concepts"))
        places = {
            key: [(entry, f"{key}[{i}]") for i, entry in enumerate(given.get(key, otherwise) or [])]
            for key, otherwise in (
                ("methods", []),
                ("concepts", []),
                ("attacks", []),
                ("seeds", [0]),
            )
        }
        suite = Suite(
            given.get("name", stem),
            given.get("backbone", "emoji-world"),
            tuple(self._method(e, where) for e, where in places["methods"]),
            tuple(self._concept(e, where) for e, where in places["concepts"]),
            tuple(self._attack(e, where) for e, where in places["attacks"]),
            tuple(_typed(e, int, where) for e, where in places["seeds"]),
            given.get("options") or {},
        )
        for key in ("methods", "concepts", "seeds"):
            if not getattr(suite, key):
                raise ErasureError(f"{key} needs at least one entry; found none.")
        _once("methods", [slug(method.name) for method in suite.methods])
        _once("concepts", [slug(concept.name) for concept in suite.concepts])
        _once("attacks", [slug(attack.name) for attack in suite.attacks])
        _once("seeds", list(map(str, suite.seeds)))
        return suite

    def _method(self, entry: Any, where: str) -> MethodEntry:
        given: dict[str, Any] = {"config": entry} if isinstance(entry, str) else entry
        _check(given, _METHOD, where, needed=("config",))
        config = given["config"]
        if isinstance(config, dict) and "name" not in given:
            raise ErasureError(f"{where} needs a name, since its config is written out.")
        content = self.config_of(config) if isinstance(config, str) else config
        return MethodEntry(
            given.get("name") or Path(config).stem, content, given.get("options") or {}
        )

    def _concept(self, entry: Any, where: str) -> ConceptEntry:
        _check(entry, _CONCEPT, where, needed=("name",))
        neighbours = tuple(
            _typed(e, str, f"{where}.neighbours") for e in entry.get("neighbours") or []
        )
        fields = {key: value for key, value in entry.items() if key not in ("erase", "neighbours")}
        if "erase" not in entry:
            return ConceptEntry(entry["name"], (read_entry(fields, where),), neighbours)
        if odd := [key for key in fields if key != "name"]:
            raise ErasureError(
                f"{where} has both erase and {odd[0]!r}; say the latter inside erase."
            )
        listed = entry["erase"]
        found = (
            self.concepts_of(listed)
            if isinstance(listed, str)
            else [read_entry(e, where) for e in listed]
        )
        concepts = tuple(found)
        check_concepts(concepts, where)
        return ConceptEntry(entry["name"], concepts, neighbours)

    def _attack(self, entry: Any, where: str) -> AttackEntry:
        given: dict[str, Any] = {"attack": entry} if isinstance(entry, str) else entry
        _check(given, _ATTACK, where, needed=("attack",))
        return AttackEntry(given["attack"], given.get("options") or {})


def _check(given: Any, known: Mapping[str, Any], where: str, needed: Iterable[str]) -> None:
    """Raise unless a mapping has known keys of the right types, and the needed ones."""
    if not isinstance(given, dict):
        raise ErasureError(
            f"{where} needs `key: value` lines with {', '.join(known)}; found {given!r}."
        )
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            meant = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise ErasureError(f"{where} has no {key!r}. {meant}")
        if value is not None:
            _typed(value, known[key], f"{where}.{key}".removeprefix("the suite."))
    if missing := [key for key in needed if not given.get(key)]:
        raise ErasureError(
            f"{where} needs {' and '.join(missing)}; found"
            f" {', '.join(map(str, given)) or 'nothing'}."
        )


def _typed(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise ErasureError(
            f"{where} needs {' or '.join(_TYPES[k] for k in kinds)}; found {value!r}."
        )
    return value


def _once(key: str, names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ErasureError(
            f"{key} needs each name once, since it names a folder; found {twice[0]!r} more than"
            " once."
        )
