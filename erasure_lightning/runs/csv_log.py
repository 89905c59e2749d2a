"""`MetricsFile`: the CSV log of a run, which a resumed run continues."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import append_bytes, write_atomically
from erasure_lightning.runs.folder import Run


class MetricsFile(Logger):
    """Logs metrics to ``metrics.csv`` in the run's folder.

    A resumed run keeps the rows of earlier steps, and replaces those of steps that it repeats.

    Args:
        folder: The run's folder.
    """

    #: Empty: `save_dir` is the run's, to which Lightning's `ModelCheckpoint` adds the name.
    name = ""
    #: Empty: a folder has one run.
    version = ""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self._path = Run(Path(folder)).log
        self._rows: list[dict[str, Any]] | None = None
        self._columns: list[str] = []

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does not log them: they are in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes a row."""
        row = {"step": step or 0, **metrics}
        rewrites = self._rows is None
        if self._rows is None:
            self._rows = [old for old in read_metrics(self._path) if int(old["step"]) < row["step"]]
            self._columns = list(dict.fromkeys(column for old in self._rows for column in old))
        self._rows.append(row)
        if added := [column for column in row if column not in self._columns]:
            self._columns += added
        if rewrites or added:
            write_atomically(self._path, _text(self._columns, self._rows, header=True))
        else:
            append_bytes(self._path, _text(self._columns, [row]))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.csv``; none if there is no file or it is another one's.

    Raises:
        ErasureError: If it is not UTF-8.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ErasureError(
            f"{path} needs to be UTF-8, as `erasure fit` writes it; found another encoding"
            f" ({error}). Save it as UTF-8, or move it away."
        ) from error
    # A kill or a full disk may truncate the last row.
    whole, end, _ = text.rpartition("\n")
    rows = csv.DictReader(io.StringIO(whole + end, newline=""))
    return [row for row in rows if (row.get("step") or "").isdigit()]


def _text(columns: list[str], rows: list[dict[str, Any]], header: bool = False) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
