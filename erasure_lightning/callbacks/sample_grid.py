"""`SampleGrid`: one picture that shows at a glance what an edit took away and what it left alone."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning import Trainer
from PIL import Image
from torch import Tensor

from erasure_lightning.callbacks.paired_images import PairedImages
from erasure_lightning.concepts.concept import shortened_names
from erasure_lightning.concepts.vocabulary import evenly_spaced
from erasure_lightning.data.image_grid import GridRow, draw_grid, png_bytes, to_pil
from erasure_lightning.data.image_plan import ImageRequest
from erasure_lightning.distributed.collectives import all_gather_items
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import SAMPLES_COLUMNS, SAMPLES_FILE, write_atomically
from erasure_lightning.metrics.groups import HEADINGS
from erasure_lightning.runs.folder import Run
from erasure_lightning.training.base import ErasureModule


class Cell(NamedTuple):
    """The two pictures of a shot."""

    shot: ImageRequest
    original: Image.Image
    edited: Image.Image


class SampleGrid(PairedImages):
    """Writes ``grid.png``: prompts by group, and of each the original's and the edited model's
    picture at equal seeds.

    The same pictures lie one by one in ``samples/``, as ``NNN-before.png`` and ``NNN-after.png``,
    listed in ``samples.csv``, which is written last.

    Args:
        rows: Prompts of each group, spread over it; 1 to 3.
        seeds: Seeds of each prompt, 1 to 4.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(self, rows: int = 3, seeds: int = 2) -> None:
        for name, value, most in (("rows", rows, 3), ("seeds", seeds, 4)):
            if not 1 <= value <= most:
                raise ErasureError(
                    f"SampleGrid needs {name} of 1 to {most}, or nobody can read it; found {value}."
                )
        self.rows = rows
        self.seeds = seeds
        self._prompts: list[tuple[str, str]] = []
        self._columns: list[int] = []
        self._cells: list[Cell] = []

    def begin(self, module: ErasureModule, shots: Sequence[ImageRequest]) -> None:
        """Choose the prompts and seeds to show."""
        asked = {
            group: list(dict.fromkeys(s.prompt for s in shots if s.group == group))
            for group in HEADINGS
        }
        self._prompts = [
            (group, prompt)
            for group, texts in asked.items()
            for prompt in evenly_spaced(texts, self.rows)
        ]
        self._columns = sorted({s.seed for s in shots})[: self.seeds]
        self._cells = []

    def take(self, shots: Sequence[ImageRequest], original: Tensor, edited: Tensor) -> None:
        """Keep what is to be shown."""
        for shot, before, after in zip(shots, original, edited, strict=True):
            if (shot.group, shot.prompt) in self._prompts and shot.seed in self._columns:
                self._cells.append(Cell(shot, to_pil(before), to_pil(after)))

    def finish(self, trainer: Trainer, module: ErasureModule) -> None:
        """Bring the ranks' pictures together and write them."""
        cells = sorted(all_gather_items(self._cells), key=self._place)
        if not (cells and trainer.is_global_zero):
            return
        run = Run(Path(trainer.default_root_dir))
        columns = [
            f"seed {seed}: {model}" for seed in self._columns for model in ("original", "edited")
        ]
        grid = draw_grid(_title(module), _subtitle(cells[0].shot), columns, self._lines(cells))
        write_atomically(run.grid, png_bytes(grid))
        _save(run.samples, cells)

    def _place(self, cell: Cell) -> tuple[int, int]:
        """Where a cell stands in the grid."""
        return self._prompts.index((cell.shot.group, cell.shot.prompt)), cell.shot.seed

    def _lines(self, cells: Sequence[Cell]) -> list[GridRow]:
        """Rows of the grid, without prompts that no picture was drawn for."""
        found = {(c.shot.group, c.shot.prompt, c.shot.seed): c for c in cells}
        lines = []
        for group, prompt in self._prompts:
            row = [found.get((group, prompt, seed)) for seed in self._columns]
            pictures = [
                p for cell in row for p in ((cell.original, cell.edited) if cell else (None, None))
            ]
            if any(row):
                lines.append(GridRow(HEADINGS[group], prompt, pictures))
        return lines


def _title(module: ErasureModule) -> str:
    few = len(module.concepts) <= 3
    names = [
        f"{c.name} ({c.anchor} in its place)" if c.anchor and few else c.name
        for c in module.concepts
    ]
    return f"{type(module).__name__} erases {shortened_names(names)}"


def _subtitle(shot: ImageRequest) -> str:
    return (
        f"{shot.steps} steps, guidance {shot.guidance:g}; pictures side by side start from the same"
        " noise"
    )


def _save(folder: Path, cells: Sequence[Cell]) -> None:
    """Write the pictures one by one, and the list of them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(SAMPLES_COLUMNS)
    for number, (shot, *pictures) in enumerate(cells):
        names = [f"{number:03}-{when}.png" for when in ("before", "after")]
        for name, picture in zip(names, pictures, strict=True):
            write_atomically(folder / name, png_bytes(picture))
        writer.writerow((shot.prompt, shot.group, shot.seed, *names))
    write_atomically(folder / SAMPLES_FILE, text.getvalue().encode(errors="replace"))
