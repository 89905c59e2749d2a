"""Methods and attacks by name: ours, and those that other packages announce in entry points."""

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import TYPE_CHECKING, Any, NamedTuple

from erasure_lightning.attacks import ATTACKS
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import METHODS, BuiltIn

if TYPE_CHECKING:  # a listing must not pay for torch
    from erasure_lightning.attacks.base import Attack
    from erasure_lightning.training.base import ErasureModule

#: What could not be loaded so far, and why; kept so that a later error can name it.
failures: dict[str, str] = {}


class Kind(NamedTuple):
    """Something that packages offer by name.

    Args:
        noun: What one is called.
        group: Entry-point group in which packages announce theirs.
        base: What each is derived from, ``module:Class``.
        ours: Those that come with this package.
    """

    noun: str
    group: str
    base: str
    ours: dict[str, BuiltIn]


METHOD = Kind(
    "method",
    "erasure_lightning.methods",
    "erasure_lightning.training.base:ErasureModule",
    METHODS,
)
ATTACK = Kind(
    "attack", "erasure_lightning.attacks", "erasure_lightning.attacks.base:Attack", ATTACKS
)


class Offer(NamedTuple):
    """A method or an attack that some package offers; nothing of it has been imported yet.

    Args:
        kind: Which of the two.
        name: Its class name.
        target: Where the class is, ``module:Class``.
        package: Distribution it comes from, with version.
        summary: What it does, in one line.
        paper: Where it was published, empty where the package does not say.
    """

    kind: Kind
    name: str
    target: str
    package: str
    summary: str
    paper: str

    @property
    def class_path(self) -> str:
        """Where the class is, as configs write it."""
        return self.target.replace(":", ".")


def known_methods() -> list[Offer]:
    """Every method that is offered, ours first; a name that two packages claim stands there twice."""
    return _known(METHOD)


def known_attacks() -> list[Offer]:
    """Every attack that is offered, in the same order."""
    return _known(ATTACK)


def _known(kind: Kind) -> list[Offer]:
    return _ours(kind) + sorted(
        (_plugin(kind, entry) for entry in entry_points(group=kind.group)), key=lambda o: o[1:]
    )


def _ours(kind: Kind) -> list[Offer]:
    package = f"erasure-lightning {version('erasure-lightning')}"
    return [
        Offer(kind, name, one.target, package, one.summary, one.paper)
        for name, one in kind.ours.items()
    ]


def _plugin(kind: Kind, entry: EntryPoint) -> Offer:
    """What the package's metadata say, if it has any; its summary, and its project URL named
    ``Paper``.
    """
    metadata = entry.dist.metadata if entry.dist else None
    if entry.dist is None or metadata is None or not metadata["Name"]:
        return Offer(kind, entry.name, entry.value, entry.value.partition(":")[0], "", "")
    urls = [url.split(",", 1) for url in metadata.get_all("Project-URL") or []]
    paper = next((target.strip() for label, target in urls if label.strip().lower() == "paper"), "")
    summary = metadata.get_all("Summary") or [""]
    return Offer(
        kind, entry.name, entry.value, f"{entry.dist.name} {entry.dist.version}", summary[0], paper
    )


def find_method(name: str) -> Offer:
    """The method of a name, in any case, without importing it; ours win over a plugin of the same
    name.

    Raises:
        ErasureError: If nobody or more than one package offers it.
    """
    return _find(METHOD, name)


def find_attack(name: str) -> Offer:
    """The attack of a name, found as methods are.

    Raises:
        ErasureError: If nobody or more than one package offers it.
    """
    return _find(ATTACK, name)


def _find(kind: Kind, name: str) -> Offer:
    found = _named(name, _ours(kind)) or _named(name, known := _known(kind))
    if not found:
        raise ErasureError(_unknown(kind, name, sorted({o.name for o in known})))
    if len(found) > 1:
        packages = " and ".join(f"{o.package} ({o.class_path})" for o in found)
        raise ErasureError(
            f"The {kind.noun} name {name!r} is claimed by {packages}. Uninstall one, or give the"
            " full class path."
        )
    return found[0]


def _named(name: str, offers: list[Offer]) -> list[Offer]:
    exact = [o for o in offers if o.name == name]
    return exact or [o for o in offers if o.name.casefold() == name.casefold()]


def _unknown(kind: Kind, name: str, known: list[str]) -> str:
    lower = {k.casefold(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(name.casefold(), lower, n=2)]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    broken = "".join(f" {failed} could not be loaded: {why}" for failed, why in failures.items())
    return f"unknown {kind.noun} {name!r}.{hint} Known: {', '.join(known)}.{broken}"


def load_method(offer: Offer) -> type["ErasureModule"]:
    """Import a method and check that it is what its name promises.

    Raises:
        ErasureError: If it cannot be imported, or is something else; noted in `failures` too.
    """
    found: type[ErasureModule] = load_offer(offer)
    return found


def load_attack(offer: Offer) -> type["Attack"]:
    """Import an attack and check that it is what its name promises.

    Raises:
        ErasureError: If it cannot be imported, or is something else; noted in `failures` too.
    """
    found: type[Attack] = load_offer(offer)
    return found


def load_offer(offer: Offer) -> Any:
    """Import what is offered, and check that it is what its name promises.

    Raises:
        ErasureError: If it cannot be imported, or is something else; noted in `failures` too.
    """
    module, _, attribute = offer.target.partition(":")
    noun = offer.kind.noun
    try:
        found = getattr(import_module(module), attribute)
        _check(offer, found)
    except (Exception, SystemExit) as error:  # a plugin's own code runs here, and may even exit
        failures[offer.name] = f"{_cause(error)} (from {offer.package}, {offer.target})"
        raise ErasureError(
            f"The {noun} {offer.name} could not be loaded from {offer.package} ({offer.target}):"
            f" {_cause(error)}. Mend or uninstall that package, or use another {noun}."
        ) from error
    failures.pop(offer.name, None)
    return found


def _cause(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ended the program when imported (SystemExit: {error.code})"
    return f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(".")


def _check(offer: Offer, found: object) -> None:
    module, _, attribute = offer.kind.base.partition(":")
    base = getattr(import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise TypeError(f"expected a subclass of {attribute}, found {found!r}")
    if found.__name__ != offer.name:
        raise TypeError(
            f"the entry point is named {offer.name!r}, but its class is named {found.__name__!r}"
        )
