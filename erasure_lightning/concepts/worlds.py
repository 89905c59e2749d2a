"""Worlds: small trained pipelines from packages, each with a scorer and a vocabulary."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from erasure_lightning.discovery import cause_of, package_of, unmet_requirement
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.quiet_libraries import quiet_libraries
from erasure_lightning.files.words import did_you_mean, folded

WORLDS_GROUP = "erasure_lightning.worlds"

#: Our own worlds; the others have parts of the first.
_OURS = ("emoji-world", "emoji-world-xl", "emoji-world-flux")


@dataclass(frozen=True)
class Label:
    """A thing that a world can generate.

    Args:
        name: Its name in captions.
        group: Its kind.
        tags: Words that it shares with other things.
    """

    name: str
    group: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """A trained pipeline from a package, with its scorer and vocabulary.

    Args:
        name: Name of its entry point.
        root: Folder of ``labels.json``, ``pipeline/`` and ``scorer/``.
        package: Its distribution, with version.
        labels: All things that it can generate.
        styles: All styles that it can generate.
        steps: Default sampling steps.
        guidance: Default guidance scale.
        size: Side of its images in pixels.
        captions: Templates of its training: ``"label"`` holds ``{}``, ``"style"`` holds ``{thing}``
            and ``{style}``.
        parts: Folders of another world, by their path below ``root`` (``pipeline/vae``).
        templates: Sentences for concepts of a kind (``"thing"``, ``"style"`` with ``{thing}``,
            ``"person"``, ``"action"``), where they differ from `TEMPLATES_BY_KIND`.
        settings: Values of a part's ``config.json`` that differ in this world, by its path
            (``pipeline/vae``: ``{"scaling_factor": 0.4678}``).
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
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def pipeline(self) -> Path:
        """Folder of the pipeline's ``model_index.json`` and of its own components."""
        return self.root / "pipeline"

    @property
    def scorer(self) -> Path:
        """Folder of the scorer of its images."""
        return self.folder("scorer")

    def component(self, name: str) -> Path:
        """Folder of a component of the pipeline.

        Args:
            name: Its name in ``model_index.json`` (``unet``, ``tokenizer_2``).
        """
        return self.folder(f"pipeline/{name}")

    def component_settings(self, name: str) -> dict[str, Any]:
        """Values that replace some of a component's ``config.json``, for ``from_pretrained``.

        Args:
            name: Its name in ``model_index.json`` (``vae``).
        """
        return dict(self.settings.get(f"pipeline/{name}", {}))

    def load_pipeline(self) -> Any:
        """The diffusers pipeline, in float32."""
        index = json.loads((self.pipeline / "model_index.json").read_text(encoding="utf-8"))
        with quiet_libraries():
            from diffusers import DiffusionPipeline
            from torch import float32

            shared = {
                name: _component(self.component(name), self.component_settings(name), *index[name])
                for name in index
                if f"pipeline/{name}" in self.parts
            }
            return DiffusionPipeline.from_pretrained(
                str(self.pipeline), dtype=float32, use_safetensors=True, **shared
            )

    def folder(self, path: str) -> Path:
        """A folder of this world by its path below ``root``; it may be another world's."""
        return self.parts.get(path, self.root / path)

    def same(self, label: str, other: str) -> bool:
        """Whether two labels count as one, as ``"dog"`` and ``"dog face"`` do."""
        return folded(label).removesuffix(" face") == folded(other).removesuffix(" face")

    def labels_of(self, word: str) -> tuple[str, ...]:
        """Labels of that name (`same`), else all labels with that tag."""
        own = tuple(label.name for label in self.labels if self.same(label.name, word))
        tagged = (label.name for label in self.labels if folded(word) in map(folded, label.tags))
        return own or tuple(tagged)

    def has_word(self, word: str) -> bool:
        """Whether a word is a label, a tag or a style, ignoring case."""
        return bool(self.labels_of(word)) or folded(word) in map(folded, self.styles)

    def nearest(self, word: str) -> list[str]:
        """Labels, styles and tags spelled most like a word, best first."""
        names = [name for label in self.labels for name in (label.name, *label.tags)]
        spelled = {folded(name): name for name in (*names, *self.styles)}
        return [spelled[match] for match in difflib.get_close_matches(folded(word), spelled)]


def worlds() -> dict[str, str]:
    """Name of every installed world -> its package."""
    return {name: _packages(name) for name in sorted(entry_points(group=WORLDS_GROUP).names)}


def find_world(name: str) -> World:
    """The installed world of that name, such as ``emoji-world``.

    Args:
        name: Name of its entry point; ``erasure methods`` lists them.

    Raises:
        ErasureError: If no package has one, with a similar name, or it cannot be read.

    Example:
        >>> from erasure_lightning import find_world
        >>> find_world("emoji-world").labels_of("guitar")
        ('guitar',)
    """
    if world := installed_world(name):
        return world
    hint = did_you_mean(name, {*worlds(), *_OURS})
    known = ", ".join(worlds()) or "none"
    raise ErasureError(f"No world is named {name!r}.{hint} Installed: {known}.")


def installed_world(name: str) -> World | None:
    """The world of that name; None if no package has one.

    Raises:
        ErasureError: If the world cannot be read, is claimed twice, or is one of ours and not
            installed.
    """
    claim = _claim(name)
    if claim is None and name in _OURS:
        raise ErasureError(
            f"The world '{name}' needs its package, which is not installed: run {_install(name)}."
        )
    return _load(claim) if claim else None


def _install(name: str) -> str:
    """The command that installs one of our own worlds."""
    folders = " ".join(f"-e plugins/{part}" for part in dict.fromkeys((_OURS[0], name)))
    return f"`pip install erasure-lightning-{name}`, or in a checkout `pip install {folders}`"


def _claim(name: str) -> EntryPoint | None:
    claims = tuple(entry_points(group=WORLDS_GROUP, name=name))
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
    except (Exception, SystemExit) as error:  # the package's own code runs, and may even exit
        raise ErasureError(
            f"The world '{entry.name}' could not be loaded from {package_of(entry)}"
            f" ({entry.value}): {cause_of(error)}. Reinstall that package or use another world."
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
    styles = tuple(content["styles"])
    captions = content["captions"]
    package = package_of(entry)
    sentences = {"captions": captions, "templates": content.get("templates", {})}
    return World(entry.name, root, package, labels, styles, **sentences, **content["sampling"])


def _based(entry: EntryPoint, root: Path, content: Mapping[str, Any]) -> World:
    """A world with the vocabulary, the captions and some parts of another."""
    base = _base(entry, content["base"])
    parts = {path: base.folder(other) for path, other in content["parts"].items()}
    if missing := sorted({content["parts"][path] for path in parts if not parts[path].is_dir()}):
        raise ErasureError(
            f"The world '{entry.name}' needs {', '.join(missing)} of {base.package}; "
            "found no such folder: reinstall both packages."
        )
    own = content.get("settings", {})
    _require_settings(entry, own, parts)
    settings = {
        path: {**base.settings.get(other, {}), **own.get(path, {})}
        for path, other in content["parts"].items()
    }
    world = replace(base, name=entry.name, root=root, package=package_of(entry), parts=parts)
    return replace(world, settings=settings, **content["sampling"])


def _require_settings(
    entry: EntryPoint, settings: Mapping[str, Mapping[str, Any]], parts: Mapping[str, Path]
) -> None:
    """Refuses settings that would have no effect."""
    shared = [path for path in parts if path.startswith("pipeline/")]
    for path, values in settings.items():
        if path not in shared:
            raise ErasureError(
                f"The world '{entry.name}' needs settings of components that it shares"
                f" ({', '.join(shared)}); found settings of {path}: correct its labels.json."
            )
        config = parts[path] / "config.json"
        known = json.loads(config.read_text(encoding="utf-8"))
        if unknown := sorted(values.keys() - known.keys()):
            raise ErasureError(
                f"The world '{entry.name}' needs settings of {path} that {config} has; found"
                f" {', '.join(unknown)}: correct its labels.json."
            )


def _base(entry: EntryPoint, name: str) -> World:
    """The world that another is based on, in a version that the other's package allows.

    Raises:
        ErasureError: If it is not installed, or of another version.
    """
    claim = _claim(name)
    if claim is None:
        how = f"run {_install(name)}" if name in _OURS else "install the package that brings it"
        raise ErasureError(
            f"The world '{entry.name}' needs the world '{name}', which is not installed: {how}."
        )
    if need := unmet_requirement(entry, claim):
        _, _, version = package_of(claim).rpartition(" ")
        raise ErasureError(
            f"The world '{entry.name}' needs {need}; found {version}: run `pip install '{need}'`."
        )
    return _load(claim)


def _component(folder: Path, settings: Mapping[str, Any], library: str, kind: str) -> Any:
    """A component with some values of its config replaced, loaded by its own class, in float32."""
    from torch import float32, nn

    cls = getattr(import_module(library), kind)
    weights = {"dtype": float32, "use_safetensors": True} if issubclass(cls, nn.Module) else {}
    return cls.from_pretrained(str(folder), **settings, **weights)


def _packages(name: str) -> str:
    return " and ".join(
        sorted(package_of(entry) for entry in entry_points(group=WORLDS_GROUP, name=name))
    )
