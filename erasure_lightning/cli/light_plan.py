"""``erasure plan`` with less to import: it is to answer in seconds."""

from functools import cache
from importlib import metadata
from unittest.mock import patch

#: Packages that torchmetrics imports for metrics and plots, of which a plan has none.
_UNUSED = frozenset({"matplotlib", "scipy"})


def run_light_plan(argv: list[str]) -> int:
    """`plan.run_plan`, after Lightning's torchmetrics was imported as if `_UNUSED` were absent."""
    _import_torchmetrics()
    # transformers and diffusers each list all installed packages, which takes half a second.
    metadata.packages_distributions = cache(metadata.packages_distributions)
    from erasure_lightning.cli.plan import run_plan

    return run_plan(argv)


def _import_torchmetrics() -> None:
    """Import torchmetrics without what it imports if it is installed: a fifth of all imports."""
    from lightning_utilities.core import imports

    available = imports.package_available
    version = metadata.version

    def is_available(name: str) -> bool:
        return name not in _UNUSED and available(name)

    def version_of(name: str) -> str:
        if name in _UNUSED:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    with patch.multiple(imports, package_available=is_available, _version=version_of):
        import torchmetrics  # noqa: F401
