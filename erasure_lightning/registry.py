"""Methods, attacks and retention callbacks by name: ours, and those of other packages."""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, NamedTuple

from erasure_lightning.attacks import ATTACKS
from erasure_lightning.discovery import BuiltIn, cause_of, package_of
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import did_you_mean
from erasure_lightning.methods import METHODS
from erasure_lightning.retention import RETENTION_CALLBACKS

#: Classes of ours that configs name, beside methods, attacks and retention callbacks.
CLASSES = {
    "Measure": "erasure_lightning.callbacks.measure.Measure",
    "SampleGrid": "erasure_lightning.callbacks.sample_grid.SampleGrid",
    "Dashboard": "erasure_lightning.callbacks.dashboard.Dashboard",
    "TinyBackbone": "erasure_lightning.backbones.tiny.TinyBackbone",
    "TinyXL": "erasure_lightning.backbones.tiny.TinyXL",
    "TinyFlux": "erasure_lightning.backbones.tiny.TinyFlux",
    "TinyPixArt": "erasure_lightning.backbones.tiny.TinyPixArt",
    "TinySD3": "erasure_lightning.backbones.tiny.TinySD3",
    "PureNoise": "erasure_lightning.training.latent_sources.PureNoise",
    "TrajectoryBank": "erasure_lightning.training.trajectory_bank.TrajectoryBank",
    "StochasticTrajectories": (
        "erasure_lightning.training.stochastic_trajectories.StochasticTrajectories"
    ),
    "GeneratedImages": "erasure_lightning.training.image_sources.GeneratedImages",
    "ImageFolder": "erasure_lightning.training.image_sources.ImageFolder",
    "WordAdversary": "erasure_lightning.training.adversary_kinds.WordAdversary",
    "PrefixAdversary": "erasure_lightning.training.adversary_kinds.PrefixAdversary",
    "InversionAdversary": "erasure_lightning.training.adversary_kinds.InversionAdversary",
    "StateAdversary": "erasure_lightning.training.adversary_kinds.StateAdversary",
}

#: What could not be loaded so far, and why; an error about an unknown name repeats it.
failures: dict[str, str] = {}


class ExtensionKind(NamedTuple):
    """A kind of class that packages offer by name.

    Args:
        noun: What one is called in messages.
        group: Entry-point group in which packages announce theirs.
        base: What each is derived from, ``module:Class``.
        ours: Those of this package.
    """

    noun: str
    group: str
    base: str
    ours: dict[str, BuiltIn]


METHOD = ExtensionKind(
    "method",
    "erasure_lightning.methods",
    "erasure_lightning.training.base:ErasureModule",
    METHODS,
)
ATTACK = ExtensionKind(
    "attack", "erasure_lightning.attacks", "erasure_lightning.attacks.base:Attack", ATTACKS
)
#: `RetentionMonitor` measures and adds no term: any callback of Lightning may be one.
RETENTION = ExtensionKind(
    "retention callback",
    "erasure_lightning.retention",
    "lightning.pytorch.callbacks:Callback",
    RETENTION_CALLBACKS,
)


class Offer(NamedTuple):
    """A class that a package offers by name; it has not been imported yet.

    Args:
        kind: What it is.
        name: Its class name.
        target: Where the class is, ``module:Class``.
        package: Distribution it comes from, with version.
        summary: What it does, in one line.
        paper: Where it was published, empty where the package does not say.
    """

    kind: ExtensionKind
    name: str
    target: str
    package: str
    summary: str
    paper: str

    @property
    def class_path(self) -> str:
        """Where the class is, as configs write it."""
        return self.target.replace(":", ".")


def known_offers(kind: ExtensionKind) -> list[Offer]:
    """Every class of a kind, ours first; a name that two packages claim is listed twice."""
    plugins = [_plugin(kind, entry) for entry in entry_points(group=kind.group)]
    return _ours(kind) + sorted(plugins, key=lambda offer: offer[1:])


def find_offer(kind: ExtensionKind, name: str) -> Offer:
    """The class of a name in any case, not imported; ours go before a plugin's of the same name.

    Args:
        kind: `METHOD`, `ATTACK` or `RETENTION`.
        name: The name.

    Raises:
        ErasureError: If no package or more than one offers it, or it is no text.
    """
    if not isinstance(name, str):
        raise ErasureError(f"A {kind.noun} needs a name as text; found {name!r}.")
    matches = _named(name, _ours(kind)) or _named(name, known := known_offers(kind))
    if not matches:
        raise ErasureError(_unknown(kind, name, sorted({offer.name for offer in known})))
    if len(matches) > 1:
        packages = " and ".join(f"{offer.package} ({offer.class_path})" for offer in matches)
        raise ErasureError(
            f"The {kind.noun} name {name!r} is claimed by {packages}. Uninstall one, or give the"
            " full class path."
        )
    return matches[0]


def our_class(name: str) -> str:
    """The class path of one of `CLASSES` by its name; everything else as it is."""
    lower = {key.casefold(): path for key, path in CLASSES.items()}
    return lower.get(name.casefold(), name)


def load_offer(offer: Offer) -> Any:
    """Import a class, and check that it is of its kind.

    Raises:
        ErasureError: If it cannot be imported, or is something else; noted in `failures` too.
    """
    module, _, attribute = offer.target.partition(":")
    try:
        loaded = getattr(import_module(module), attribute)
        _check(offer, loaded)
    except (Exception, SystemExit) as error:  # a plugin's own code runs here, and may even exit
        failures[offer.name] = f"{cause_of(error)} (from {offer.package}, {offer.target})"
        noun = offer.kind.noun
        raise ErasureError(
            f"The {noun} {offer.name} could not be loaded from {offer.package} ({offer.target}):"
            f" {cause_of(error)}. Mend or uninstall that package, or use another {noun}."
        ) from error
    failures.pop(offer.name, None)
    return loaded


def _ours(kind: ExtensionKind) -> list[Offer]:
    package = f"erasure-lightning {version('erasure-lightning')}"
    return [
        Offer(kind, name, line.target, package, line.summary, line.paper)
        for name, line in kind.ours.items()
    ]


def _plugin(kind: ExtensionKind, entry: EntryPoint) -> Offer:
    """An entry point, with its distribution's summary and its project URL named ``Paper``."""
    metadata = entry.dist.metadata if entry.dist else None
    if metadata is None or not metadata["Name"]:
        return Offer(kind, entry.name, entry.value, package_of(entry), "", "")
    urls = [url.split(",", 1) for url in metadata.get_all("Project-URL") or []]
    paper = next((target.strip() for label, target in urls if label.strip().lower() == "paper"), "")
    summary = metadata.get_all("Summary") or [""]
    return Offer(kind, entry.name, entry.value, package_of(entry), summary[0], paper)


def _named(name: str, offers: list[Offer]) -> list[Offer]:
    exact = [offer for offer in offers if offer.name == name]
    return exact or [offer for offer in offers if offer.name.casefold() == name.casefold()]


def _unknown(kind: ExtensionKind, name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known, count=2)
    broken = "".join(f" {plugin} could not be loaded: {why}" for plugin, why in failures.items())
    return f"unknown {kind.noun} {name!r}.{hint} Known: {', '.join(known)}.{broken}"


def _check(offer: Offer, loaded: object) -> None:
    module, _, attribute = offer.kind.base.partition(":")
    base = getattr(import_module(module), attribute)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise TypeError(f"expected a subclass of {attribute}, found {loaded!r}")
    if loaded.__name__ != offer.name:
        raise TypeError(
            f"the entry point is named {offer.name!r}, but its class is named {loaded.__name__!r}"
        )
