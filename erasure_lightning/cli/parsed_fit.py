"""Checks a fit's arguments as `erasure fit` does, without its folder, its weights and a trainer."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from erasure_lightning.api.quiet import silence
from erasure_lightning.callbacks.interrupt import LastCheckpoint
from erasure_lightning.cli import folders
from erasure_lightning.cli.run import CommandLine


def parsed_fit(words: Sequence[str]) -> dict[str, Any]:
    """The whole config of a fit, whose method, data and callbacks were constructed from it.

    Args:
        words: Arguments of ``erasure fit``; the folder that they name stays as it is.

    Raises:
        ErasureError: If `erasure fit` would refuse them.
    """
    silence()
    try:
        with TemporaryDirectory() as folder:
            run_dir = ["--run_dir", str(Path(folder, "run"))]
            fit = _ParsedFit("fit", [*words, *run_dir], LastCheckpoint())
            config: dict[str, Any] = fit.config_dump
            return config
    finally:
        folders.unset_folder()


class _ParsedFit(CommandLine):
    """`CommandLine` of a fit that is not run."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None: a trainer would look for devices."""
        return None
