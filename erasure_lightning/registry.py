"""Methods by name: ours, and those that other packages announce in the entry-point group `GROUP`."""

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import TYPE_CHECKING, NamedTuple

from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import METHODS

if TYPE_CHECKING:  # a listing must not pay for torch
    from erasure_lightning.module import ErasureModule

GROUP = "erasure_lightning.methods"

#: Methods that could not be loaded so far, and why; kept so that a later error can name them.
failures: dict[str, str] = {}


class Method(NamedTuple):
    """A method that some package offers; nothing of it has been imported yet.

    Args:
        name: Its class name.
        target: Where the class is, ``module:Class``.
        package: Distribution it comes from, with version.
        summary: What it does, in one line.
        paper: Where it was published, empty where the package does not say.
    """

    name: str
    target: str
    package: str
    summary: str
    paper: str

    @property
    def class_path(self) -> str:
        """Where the class is, as configs write it."""
        return self.target.replace(":", ".")


def known_methods() -> list[Method]:
    """Everything that is offered, ours first; a name that two packages claim stands there twice."""
    return _ours() + sorted(_plugin(entry) for entry in entry_points(group=GROUP))


def _ours() -> list[Method]:
    package = f"erasure-lightning {version('erasure-lightning')}"
    return [Method(name, m.target, package, m.summary, m.paper) for name, m in METHODS.items()]


def _plugin(entry: EntryPoint) -> Method:
    """What the package's metadata say, if it has any; its summary, and its project URL named ``Paper``."""
    metadata = entry.dist.metadata if entry.dist else None
    if entry.dist is None or metadata is None or not metadata["Name"]:
        return Method(entry.name, entry.value, entry.value.partition(":")[0], "", "")
    urls = [url.split(",", 1) for url in metadata.get_all("Project-URL") or []]
    paper = next((target.strip() for label, target in urls if label.strip().lower() == "paper"), "")
    summary = metadata.get_all("Summary") or [""]
    return Method(entry.name, entry.value, f"{entry.dist.name} {entry.dist.version}", summary[0], paper)


def find_method(name: str) -> Method:
    """The method of a name, in any case, without importing it; ours win over a plugin of the same name.

    Raises:
        ErasureError: If nobody or more than one package offers it.
    """
    found = _named(name, _ours()) or _named(name, known := known_methods())
    if not found:
        raise ErasureError(_unknown(name, sorted({m.name for m in known})))
    if len(found) > 1:
        packages = " and ".join(f"{m.package} ({m.class_path})" for m in found)
        raise ErasureError(
            f"The method name {name!r} is claimed by {packages}. Uninstall one, or give the full class path."
        )
    return found[0]


def _named(name: str, methods: list[Method]) -> list[Method]:
    exact = [m for m in methods if m.name == name]
    return exact or [m for m in methods if m.name.casefold() == name.casefold()]


def _unknown(name: str, known: list[str]) -> str:
    lower = {k.casefold(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(name.casefold(), lower, n=2)]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    broken = "".join(f" {failed} could not be loaded: {why}" for failed, why in failures.items())
    return f"unknown method {name!r}.{hint} Known: {', '.join(known)}.{broken}"


def load_method(method: Method) -> type["ErasureModule"]:
    """Import a method and check that it is what its name promises.

    Raises:
        ErasureError: If it cannot be imported, or is something else; noted in `failures` too.
    """
    module, _, attribute = method.target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
        _check(method.name, found)
    except (Exception, SystemExit) as error:  # a plugin's own code runs here, and may even exit
        failures[method.name] = f"{_cause(error)} (from {method.package}, {method.target})"
        raise ErasureError(
            f"The method {method.name} could not be loaded from {method.package} ({method.target}): {_cause(error)}. "
            "Mend or uninstall that package, or use another method."
        ) from error
    failures.pop(method.name, None)
    return found  # type: ignore[no-any-return]  # _check has seen to it


def _cause(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ended the program when imported (SystemExit: {error.code})"
    return f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(".")


def _check(name: str, found: object) -> None:
    from erasure_lightning.module import ErasureModule

    if not (isinstance(found, type) and issubclass(found, ErasureModule)):
        raise TypeError(f"expected a subclass of ErasureModule, found {found!r}")
    if found.__name__ != name:
        raise TypeError(f"the entry point is named {name!r}, but its class is named {found.__name__!r}")
