"""Reads suites from YAML files."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from erasure_lightning.benchmark.suite import AttackEntry, ConceptEntry, MethodEntry, Suite
from erasure_lightning.checks import require_seed
from erasure_lightning.concepts.concept import Concept, check_concepts
from erasure_lightning.concepts.files import read_entry
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.strict_yaml import read_yaml_file
from erasure_lightning.files.words import did_you_mean
from erasure_lightning.runs.folder import slug

#: Keys of a suite and of its entries, with their types.
_SUITE_KEYS = {
    "name": str,
    "backbone": str,
    "methods": list,
    "concepts": list,
    "attacks": list,
    "seeds": list,
    "options": dict,
}
_METHOD_KEYS = {"name": str, "config": (str, dict), "options": dict}
_CONCEPT_KEYS = {
    "name": str,
    "erase": (str, list),
    "neighbours": list,
    "anchor": str,
    "domain": list,
    "kind": str,
}
_ATTACK_KEYS = {"attack": str, "config": str, "options": dict}

#: Folders of configs of attacks; the empty one is that of methods.
_ATTACK_FOLDERS = ("attacks", "")

#: Options that a benchmark sets for each cell, and the suite's key that decides on them.
_OWN_OF_FIT = {
    "model.backbone": "backbone",
    "model.concepts": "concepts",
    "model.seed": "seeds",
    "run_dir": "",
    "ckpt_path": "",
}
_OWN_OF_ATTACK = {"attack": "attacks", "run_dir": "", "ckpt_path": ""}

#: Names of types in messages.
_TYPE_NAMES = {str: "text", list: "a list", dict: "`key: value` lines", int: "a whole number"}


class SuiteReader:
    """Reads a `Suite` from YAML.

    Args:
        config_of: Reads the content of a config by its name, and by the folders to look into.
        concepts_of: Reads the concepts of a file by its name.
    """

    def __init__(
        self,
        config_of: Callable[..., dict[str, Any]],
        concepts_of: Callable[[str], Iterable[Concept]],
    ) -> None:
        self.config_of = config_of
        self.concepts_of = concepts_of

    def read(self, path: Path) -> Suite:
        """Read a suite's file.

        Raises:
            ErasureError: If the file is missing or no YAML; if a key is unknown, missing or of
                another type, with its place; if a config or a file of concepts is missing; if two
                entries would share a folder.
        """
        content = read_yaml_file(path)
        try:
            return self._suite(content, path.stem)
        except ErasureError as error:
            raise ErasureError(f"{path}: {error}") from error

    def _suite(self, content: Any, default_name: str) -> Suite:
        _check_keys(content, _SUITE_KEYS, "the suite", required=("backbone", "methods", "concepts"))
        suite = Suite(
            name=content.get("name") or default_name,
            backbone=content["backbone"],
            methods=tuple(self._method(*entry) for entry in _numbered(content, "methods")),
            concepts=tuple(self._concept(*entry) for entry in _numbered(content, "concepts")),
            attacks=tuple(self._attack(*entry) for entry in _numbered(content, "attacks")),
            seeds=tuple(_seed(*entry) for entry in _numbered(content, "seeds", [0])),
            options=content.get("options") or {},
        )
        _check_options(suite.options, _OWN_OF_FIT, "options")
        for key in ("methods", "concepts", "seeds"):
            if not getattr(suite, key):
                raise ErasureError(f"{key} needs at least one entry; found none.")
        for key in ("methods", "concepts", "attacks"):
            _check_unique(key, [slug(entry.name) for entry in getattr(suite, key)])
        _check_unique("seeds", list(map(str, suite.seeds)))
        return suite

    def _method(self, entry: Any, place: str) -> MethodEntry:
        method = _read_method(entry, place, self.config_of)
        _check_options(method.options, _OWN_OF_FIT, f"{place}.options")
        if "parts" not in method.config:
            return method
        parts = read_parts(method.config, method.name, self.config_of)
        return replace(method, config={"parts": [asdict(part) for part in parts]})

    def _concept(self, entry: Any, place: str) -> ConceptEntry:
        _check_keys(entry, _CONCEPT_KEYS, place, required=("name",))
        neighbours = tuple(
            _checked(name, str, f"{place}.neighbours") for name in entry.get("neighbours") or []
        )
        fields = {key: value for key, value in entry.items() if key not in ("erase", "neighbours")}
        if entry.get("erase") is None:
            return ConceptEntry(entry["name"], (read_entry(fields, place),), neighbours)
        if extra := [key for key in fields if key != "name"]:
            raise ErasureError(
                f"{place} has both erase and {extra[0]!r}; write the latter inside erase."
            )
        erase = entry["erase"]
        if isinstance(erase, str):
            concepts = tuple(self.concepts_of(erase))
        else:
            concepts = tuple(read_entry(concept, place) for concept in erase)
        check_concepts(concepts, place)
        return ConceptEntry(entry["name"], concepts, neighbours)

    def _attack(self, entry: Any, place: str) -> AttackEntry:
        key = "config" if str(entry).endswith(".yaml") else "attack"
        fields: dict[str, Any] = {key: entry} if isinstance(entry, str) else entry
        _check_keys(fields, _ATTACK_KEYS, place, required=())
        options = fields.get("options") or {}
        _check_options(options, _OWN_OF_ATTACK, f"{place}.options")
        attack = fields.get("attack")
        config = fields.get("config")
        if bool(attack) == bool(config):
            raise ErasureError(f"{place} needs an attack or a config of one, and not both.")
        if attack:
            return AttackEntry(attack, options)
        name, own = _flat_attack(self.config_of(config, *_ATTACK_FOLDERS), f"{place}: {config}")
        return AttackEntry(name, own | options)


def _flat_attack(content: dict[str, Any], place: str) -> tuple[str, dict[str, Any]]:
    """The attack of a config, and the config's values as options of ``erasure attack``."""
    attack = content.get("attack")
    if isinstance(attack, str):
        attack = {"class_path": attack}
    if not isinstance(attack, dict) or "class_path" not in attack:
        raise ErasureError(f"{place} needs an attack (attack: NAME); found {', '.join(content)}.")
    groups = {"attack": attack.get("init_args") or {}, "data": content.get("data") or {}}
    options = {
        f"{group}.{name}": value
        for group, values in groups.items()
        for name, value in values.items()
    }
    return attack["class_path"], options


def read_parts(
    content: Any, place: str, config_of: Callable[[str], dict[str, Any]]
) -> list[MethodEntry]:
    """The parts of a config whose edits are added; each is written like a method of a suite.

    Args:
        content: The config's content, ``{"parts": [...]}``.
        place: Its name in messages.
        config_of: Reads the content of a part's config by its name.

    Raises:
        ErasureError: If there are less than two parts, other keys beside them, one without a
            config or with parts of its own, two of one name, or one named by a path.
    """
    _check_keys(content, {"parts": list}, place, required=())
    try:
        parts = [_read_method(*entry, config_of) for entry in _numbered(content, "parts")]
        _check_unique("parts", [slug(part.name) for part in parts])
        if paths := [part.name for part in parts if Path(part.name).name != part.name]:
            raise ErasureError(f"parts needs names of folders; found the path {paths[0]!r}.")
        if nested := [part.name for part in parts if "parts" in part.config]:
            raise ErasureError(f"the part {nested[0]} has parts of its own; list them here.")
        if len(parts) < 2:
            raise ErasureError(f"parts needs at least two entries; found {len(parts)}.")
    except ErasureError as error:
        raise ErasureError(f"{place}: {error}") from error
    return parts


def _read_method(entry: Any, place: str, config_of: Callable[[str], dict[str, Any]]) -> MethodEntry:
    fields: dict[str, Any] = {"config": entry} if isinstance(entry, str) else entry
    _check_keys(fields, _METHOD_KEYS, place, required=("config",))
    config = fields["config"]
    if isinstance(config, dict) and not fields.get("name"):
        raise ErasureError(f"{place} needs a name, since its config is written out.")
    content = config_of(config) if isinstance(config, str) else config
    name = fields.get("name") or Path(config).stem
    return MethodEntry(name, content, fields.get("options") or {})


def _numbered(content: dict[str, Any], key: str, default: Any = ()) -> list[tuple[Any, str]]:
    """The entries under a key, each with its place for messages, such as ``methods[0]``."""
    entries = content.get(key, default) or []
    return [(entry, f"{key}[{i}]") for i, entry in enumerate(entries)]


def _check_keys(
    content: Any, known: Mapping[str, Any], place: str, required: Iterable[str]
) -> None:
    """Raise unless a mapping has the required keys, only known ones, and values of their types."""
    if not isinstance(content, dict):
        raise ErasureError(
            f"{place} needs `key: value` lines with {', '.join(known)}; found {content!r}."
        )
    for key, value in content.items():
        if key not in known:
            hint = did_you_mean(str(key), known) or f" Known: {', '.join(known)}."
            raise ErasureError(f"{place} has no {key!r}.{hint}")
        if value is not None:
            _checked(value, known[key], f"{place}.{key}".removeprefix("the suite."))
    if missing := [key for key in required if not content.get(key)]:
        keys = ", ".join(map(str, content)) or "none"
        raise ErasureError(f"{place} needs {' and '.join(missing)}; found {keys}.")


def _check_options(options: Iterable[Any], own: Mapping[str, str], place: str) -> None:
    """Raise for an option that a benchmark sets for each cell."""
    for option in options:
        if (key := own.get(str(option).replace("-", "_"))) is not None:
            remedy = f"leave it out, and write {key}" if key else "leave it out"
            raise ErasureError(f"{place} has {option!r}, which each cell has of its own: {remedy}.")


def _checked(value: Any, types: Any, place: str) -> Any:
    """The value, if it is of one of the types; ``True`` and ``False`` are no whole numbers."""
    if not isinstance(value, types) or (isinstance(value, bool) and types is int):
        alternatives = types if isinstance(types, tuple) else (types,)
        names = " or ".join(_TYPE_NAMES[alternative] for alternative in alternatives)
        raise ErasureError(f"{place} needs {names}; found {value!r}.")
    return value


def _seed(value: Any, place: str) -> int:
    require_seed(place, _checked(value, int, place))
    return int(value)


def _check_unique(key: str, names: list[str]) -> None:
    """Raise unless names of folders are unique and not empty."""
    if not all(names):
        raise ErasureError(
            f"{key} needs a letter or a digit in every name, since it names a folder."
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ErasureError(
            f"{key} needs each name once, since it names a folder; found {repeated[0]!r} more"
            " than once."
        )
