"""``erasure plan`` with less to import: it is to answer in seconds."""

import gc
import sys
from functools import cache
from importlib import import_module, metadata
from unittest.mock import patch

#: Packages that torchmetrics imports for metrics and plots, of which a plan has none.
_UNUSED = frozenset({"matplotlib", "scipy"})


def run_plan(argv: list[str]) -> int:
    """`plan.print_plan`; in a fresh process after its imports, which take as long as the plan."""
    if "lightning" not in sys.modules:
        gc.disable()  # a fifth of the imports' time, without garbage
        _import_torchmetrics()
        # transformers and diffusers each list all installed packages, which takes half a second.
        metadata.packages_distributions = cache(metadata.packages_distributions)
        import_module("erasure_lightning.cli.plan")
        gc.freeze()
        gc.enable()
    from erasure_lightning.cli.plan import print_plan

    return print_plan(argv)


def _import_torchmetrics() -> None:
    """Import torchmetrics, which Lightning needs, as if `_UNUSED` were absent."""
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
