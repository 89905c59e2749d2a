"""Worlds: small trained pipelines that packages ship, each with a scorer and the vocabulary it knows."""

import difflib
import json
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from erasure_lightning.errors import ErasureError

GROUP = "erasure_lightning.worlds"

#: How to install the worlds we publish ourselves.
_INSTALL = {
    "emoji-world": "`pip install erasure-lightning-emoji-world`, or in a checkout `pip install -e plugins/emoji-world`"
}


@dataclass(frozen=True)
class Label:
    """A thing that a world can draw: its name in captions, its kind, and words it shares with other things."""

    name: str
    group: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """A trained pipeline that a package ships, and what it knows.

    Args:
        name: Name of its entry point.
        root: Folder that holds ``pipeline/``, ``scorer/`` and ``labels.json``.
        package: Distribution it comes from, with version.
        labels, styles: Everything it can draw, and the styles it can draw it in.
        steps, guidance, size: Sampling steps and guidance scale it looks right with, and the side of its pictures.
        captions: Templates of its training: ``"label"`` holds ``{}``, ``"style"`` holds ``{thing}`` and ``{style}``.
    """

    name: str
    root: Path
    package: str
    labels: tuple[Label, ...]
    styles: tuple[str, ...]
    steps: int
    guidance: float
    size: int
    captions: dict[str, list[str]]

    @property
    def pipeline(self) -> Path:
        """Folder of the diffusers pipeline."""
        return self.root / "pipeline"

    @property
    def scorer(self) -> Path:
        """Folder of the model that judges its pictures."""
        return self.root / "scorer"

    def same(self, a: str, b: str) -> bool:
        """Whether two labels count as one, as ``"dog"`` and ``"dog face"`` do."""
        return _lower(a).removesuffix(" face") == _lower(b).removesuffix(" face")

    def labels_of(self, word: str) -> tuple[str, ...]:
        """Labels that a word names: that label and its twin, else every label with that tag, else none."""
        own = tuple(label.name for label in self.labels if self.same(label.name, word))
        return own or tuple(label.name for label in self.labels if _lower(word) in map(_lower, label.tags))

    def knows(self, word: str) -> bool:
        """Whether a word is a label, a tag or a style, in any case."""
        return bool(self.labels_of(word)) or _lower(word) in map(_lower, self.styles)

    def nearest(self, word: str) -> list[str]:
        """Labels, styles and tags spelled most like a word, best first."""
        names = [name for label in self.labels for name in (label.name, *label.tags)]
        spelled = {_lower(name): name for name in (*names, *self.styles)}
        return [spelled[match] for match in difflib.get_close_matches(_lower(word), spelled)]


def worlds() -> dict[str, str]:
    """Name of every installed world, with the package it comes from."""
    return {name: _packages(name) for name in sorted(entry_points(group=GROUP).names)}


def find_world(name: str) -> World | None:
    """World of that name, or None where no package claims it.

    Raises:
        ErasureError: If the world cannot be read, is claimed twice, or is one we publish that is not installed.
    """
    claims = tuple(entry_points(group=GROUP, name=name))
    if len(claims) > 1:
        raise ErasureError(f"The world '{name}' is claimed by {_packages(name)}: uninstall all but one of them.")
    if not claims and name in _INSTALL:
        raise ErasureError(f"The world '{name}' needs its package, which is not installed: run {_INSTALL[name]}.")
    return _load(claims[0]) if claims else None


def _load(entry: EntryPoint) -> World:
    try:
        return _read(entry.name, Path(entry.load()), _package(entry))
    except Exception as error:  # loading runs the package's own code, which may raise anything
        raise ErasureError(
            f"The world '{entry.name}' could not be loaded from {_package(entry)} ({entry.value}): "
            f"{type(error).__name__}: {error}. Reinstall that package or use another world."
        ) from error


def _read(name: str, root: Path, package: str) -> World:
    missing = [part for part in ("labels.json", "pipeline", "scorer") if not (root / part).exists()]
    if missing:
        raise FileNotFoundError(f"{root} has no {' and no '.join(missing)}")
    content = json.loads((root / "labels.json").read_text(encoding="utf-8"))
    labels = tuple(Label(row["label"], row["group"], tuple(row["tags"])) for row in content["labels"])
    styles, captions = tuple(content["styles"]), content["captions"]
    return World(name, root, package, labels, styles, captions=captions, **content["sampling"])


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.module


def _packages(name: str) -> str:
    return " and ".join(sorted(_package(entry) for entry in entry_points(group=GROUP, name=name)))


def _lower(word: str) -> str:
    return " ".join(word.lower().split())
