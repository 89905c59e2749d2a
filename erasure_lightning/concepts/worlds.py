"""Worlds: small trained pipelines that packages ship, each with a scorer and the vocabulary it
knows.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.wording import folded

GROUP = "erasure_lightning.worlds"

#: How to install the worlds we publish ourselves.
_INSTALL = {
    "emoji-world": (
        "`pip install erasure-lightning-emoji-world`, or in a checkout `pip install -e"
        " plugins/emoji-world`"
    ),
    "emoji-world-xl": (
        "`pip install erasure-lightning-emoji-world-xl`, or in a checkout "
        "`pip install -e plugins/emoji-world -e plugins/emoji-world-xl`"
    ),
}


@dataclass(frozen=True)
class Label:
    """A thing that a world can draw: its name in captions, its kind, and words it shares with other
    things.
    """

    name: str
    group: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """A trained pipeline that a package ships, and what it knows.

    Args:
        name: Name of its entry point.
        root: Folder that holds ``labels.json``, ``pipeline/`` and ``scorer/``.
        package: Distribution it comes from, with version.
        labels, styles: Everything it can draw, and the styles it can draw it in. steps, guidance,
        size: Sampling steps and guidance scale it looks right with, and the side of its pictures.
        captions: Templates of its training: ``"label"`` holds ``{}``, ``"style"`` holds ``{thing}``
            and ``{style}``.
        parts: Folders that lie in another world, by their path below ``root`` (``pipeline/vae``).
        templates: Sentences that concepts of a kind are put into (``"thing"``, ``"style"`` with
            ``{thing}``, or ``"person"``), where they differ from the core's.
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
    parts: Mapping[str, Path] = field(default_factory=dict)
    templates: dict[str, list[str]] = field(default_factory=dict)

    @property
    def pipeline(self) -> Path:
        """Folder of the pipeline's ``model_index.json`` and of the components that are its own."""
        return self.root / "pipeline"

    @property
    def scorer(self) -> Path:
        """Folder of the model that judges its pictures."""
        return self.folder("scorer")

    def component(self, name: str) -> Path:
        """Folder of a component of the pipeline.

        Args:
            name: As ``model_index.json`` has it (``unet``, ``tokenizer_2``).
        """
        return self.folder(f"pipeline/{name}")

    def load_pipeline(self) -> Any:
        """The pipeline of diffusers, of the class that ``model_index.json`` names, in float32."""
        from diffusers import DiffusionPipeline
        from torch import float32

        index = json.loads((self.pipeline / "model_index.json").read_text(encoding="utf-8"))
        shared = {
            name: _component(self.component(name), *index[name])
            for name in index
            if f"pipeline/{name}" in self.parts
        }
        return DiffusionPipeline.from_pretrained(
            str(self.pipeline), dtype=float32, use_safetensors=True, **shared
        )

    def folder(self, path: str) -> Path:
        """Where a folder lies that ``path`` names below ``root``: there, or in another world."""
        return self.parts.get(path, self.root / path)

    def same(self, a: str, b: str) -> bool:
        """Whether two labels count as one, as ``"dog"`` and ``"dog face"`` do."""
        return folded(a).removesuffix(" face") == folded(b).removesuffix(" face")

    def labels_of(self, word: str) -> tuple[str, ...]:
        """Labels that a word names: that label and its twin, else every label with that tag, else
        none.
        """
        own = tuple(label.name for label in self.labels if self.same(label.name, word))
        return own or tuple(
            label.name for label in self.labels if folded(word) in map(folded, label.tags)
        )

    def knows(self, word: str) -> bool:
        """Whether a word is a label, a tag or a style, in any case."""
        return bool(self.labels_of(word)) or folded(word) in map(folded, self.styles)

    def nearest(self, word: str) -> list[str]:
        """Labels, styles and tags spelled most like a word, best first."""
        names = [name for label in self.labels for name in (label.name, *label.tags)]
        spelled = {folded(name): name for name in (*names, *self.styles)}
        return [spelled[match] for match in difflib.get_close_matches(folded(word), spelled)]


def worlds() -> dict[str, str]:
    """Name of every installed world, with the package it comes from."""
    return {name: _packages(name) for name in sorted(entry_points(group=GROUP).names)}


def find_world(name: str) -> World | None:
    """World of that name, or None where no package claims it.

    Raises:
        ErasureError: If the world cannot be read, is claimed twice, or is one we publish that is
            not installed.
    """
    claim = _claim(name)
    if claim is None and name in _INSTALL:
        raise ErasureError(
            f"The world '{name}' needs its package, which is not installed: run {_INSTALL[name]}."
        )
    return _load(claim) if claim else None


def _claim(name: str) -> EntryPoint | None:
    claims = tuple(entry_points(group=GROUP, name=name))
    if len(claims) > 1:
        raise ErasureError(
            f"The world '{name}' is claimed by {_packages(name)}: uninstall all but one of them."
        )
    return claims[0] if claims else None


def _load(entry: EntryPoint) -> World:
    try:
        return _read(entry, Path(entry.load()))
    except ErasureError:
        raise
    except Exception as error:  # loading runs the package's own code, which may raise anything
        raise ErasureError(
            f"The world '{entry.name}' could not be loaded from {_package(entry)} ({entry.value}): "
            f"{type(error).__name__}: {error}. Reinstall that package or use another world."
        ) from error


def _read(entry: EntryPoint, root: Path) -> World:
    file = root / "labels.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    own = {"labels.json", "pipeline", "scorer"} - set(content.get("parts", ()))
    if missing := sorted(part for part in own if not (root / part).exists()):
        raise FileNotFoundError(f"{root} has no {' and no '.join(missing)}")
    if "base" in content:
        return _based(entry, root, content)
    labels = tuple(
        Label(row["label"], row["group"], tuple(row["tags"])) for row in content["labels"]
    )
    styles, captions, package = tuple(content["styles"]), content["captions"], _package(entry)
    sentences = {"captions": captions, "templates": content.get("templates", {})}
    return World(entry.name, root, package, labels, styles, **sentences, **content["sampling"])


def _based(entry: EntryPoint, root: Path, content: Mapping[str, Any]) -> World:
    """World with the vocabulary, the captions and the listed parts of another."""
    base = _base(entry, content["base"])
    parts = {own: base.folder(theirs) for own, theirs in content["parts"].items()}
    if missing := sorted({content["parts"][own] for own in parts if not parts[own].is_dir()}):
        raise ErasureError(
            f"The world '{entry.name}' needs {', '.join(missing)} of {base.package}; "
            "found no such folder: reinstall both packages."
        )
    package, sampling = _package(entry), content["sampling"]
    return replace(base, name=entry.name, root=root, package=package, parts=parts, **sampling)


def _base(entry: EntryPoint, name: str) -> World:
    """World that another is based on, in a version that the other's package allows.

    Raises:
        ErasureError: If it is not installed, or in another version.
    """
    claim = _claim(name)
    if claim is None:
        how = f"run {_INSTALL[name]}" if name in _INSTALL else "install the package that brings it"
        raise ErasureError(
            f"The world '{entry.name}' needs the world '{name}', which is not installed: {how}."
        )
    _refuse_version(entry, claim)
    return _load(claim)


def _refuse_version(entry: EntryPoint, base: EntryPoint) -> None:
    if not entry.dist or not base.dist:
        return
    from packaging.requirements import Requirement  # costs light commands, which need no version
    from packaging.utils import canonicalize_name

    package, version = canonicalize_name(base.dist.name), base.dist.version
    for need in map(Requirement, entry.dist.requires or ()):
        allowed = need.specifier.contains(version, prereleases=True)
        if canonicalize_name(need.name) == package and not allowed:
            raise ErasureError(
                f"The world '{entry.name}' needs {need}; found {version}: run `pip install"
                f" '{need}'`."
            )


def _component(folder: Path, library: str, kind: str) -> Any:
    """A component as its own class loads it; weights in float32."""
    from torch import float32, nn

    cls = getattr(import_module(library), kind)
    weights = {"dtype": float32, "use_safetensors": True} if issubclass(cls, nn.Module) else {}
    return cls.from_pretrained(str(folder), **weights)


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.module


def _packages(name: str) -> str:
    return " and ".join(sorted(_package(entry) for entry in entry_points(group=GROUP, name=name)))
