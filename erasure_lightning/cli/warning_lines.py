"""Warnings of this package as lines of the command line."""

import warnings
from pathlib import Path

import lightning  # noqa: F401  sets a format of its own when it is imported

_PACKAGE = str(Path(__file__).parents[1])

_format_of_others = warnings.formatwarning


def format_warnings() -> None:
    """Print this package's warnings without their place in the code, in the rest of the process."""
    warnings.formatwarning = _format


def _format(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    if filename.startswith(_PACKAGE):
        return f"erasure: warning: {message}\n"
    return _format_of_others(message, category, filename, lineno, line)
