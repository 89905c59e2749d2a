"""`SampleGrid`: a grid of images of the original and the edited model."""

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
from erasure_lightning.metrics.groups import GROUP_HEADINGS
from erasure_lightning.runs.folder import Run
from erasure_lightning.training.base import ErasureModule


class _GridCell(NamedTuple):
    """The two models' images of a request."""

    request: ImageRequest
    original: Image.Image
    edited: Image.Image


class SampleGrid(PairedImages):
    """Writes ``grid.png``: prompts by group, with both models' images at equal seeds.

    The same images are files in ``samples/``, ``NNN-before.png`` and ``NNN-after.png``, listed in
    ``samples.csv``, which is written last.

    Args:
        rows: Prompts of each group, evenly spread over it; 1 to 3.
        seeds: Seeds of each prompt, 1 to 4.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(self, rows: int = 3, seeds: int = 2) -> None:
        for name, value, most in (("rows", rows, 3), ("seeds", seeds, 4)):
            if not 1 <= value <= most:
                raise ErasureError(
                    f"SampleGrid needs {name} of 1 to {most}, or it is unreadable; found {value}."
                )
        self.rows = rows
        self.seeds = seeds
        self._prompts: list[tuple[str, str]] = []
        self._columns: list[int] = []
        self._cells: list[_GridCell] = []

    def begin(self, module: ErasureModule, requests: Sequence[ImageRequest]) -> None:
        """Choose prompts and seeds."""
        self._prompts = []
        for group in GROUP_HEADINGS:
            prompts = dict.fromkeys(r.prompt for r in requests if r.group == group)
            self._prompts += [(group, prompt) for prompt in evenly_spaced(list(prompts), self.rows)]
        self._columns = sorted({request.seed for request in requests})[: self.seeds]
        self._cells = []

    def take(self, requests: Sequence[ImageRequest], original: Tensor, edited: Tensor) -> None:
        """Store the images of chosen prompts and seeds."""
        for request, before, after in zip(requests, original, edited, strict=True):
            if (request.group, request.prompt) in self._prompts and request.seed in self._columns:
                self._cells.append(_GridCell(request, to_pil(before), to_pil(after)))

    def finish(self, trainer: Trainer, module: ErasureModule) -> None:
        """Gather the images of all ranks and write them."""
        cells = sorted(all_gather_items(self._cells), key=self._position)
        if not (cells and trainer.is_global_zero):
            return
        run = Run(Path(trainer.default_root_dir))
        columns = [
            f"seed {seed}: {model}" for seed in self._columns for model in ("original", "edited")
        ]
        subtitle = _subtitle(cells[0].request)
        grid = draw_grid(_title(module), subtitle, columns, self._lines(cells))
        write_atomically(run.grid, png_bytes(grid))
        _save(run.samples, cells)

    def _position(self, cell: _GridCell) -> tuple[int, int]:
        """Row and seed of a cell."""
        request = cell.request
        return self._prompts.index((request.group, request.prompt)), request.seed

    def _lines(self, cells: Sequence[_GridCell]) -> list[GridRow]:
        """Rows of the grid, without prompts that have no image."""
        by_place = {(c.request.group, c.request.prompt, c.request.seed): c for c in cells}
        lines = []
        for group, prompt in self._prompts:
            row = [by_place.get((group, prompt, seed)) for seed in self._columns]
            images: list[Image.Image | None] = []
            for cell in row:
                images += (cell.original, cell.edited) if cell else (None, None)
            if any(row):
                lines.append(GridRow(GROUP_HEADINGS[group], prompt, images))
        return lines


def _title(module: ErasureModule) -> str:
    few = len(module.concepts) <= 3
    names = [
        f"{c.name} ({c.anchor} in its place)" if c.anchor and few else c.name
        for c in module.concepts
    ]
    return f"{type(module).__name__} erases {shortened_names(names)}"


def _subtitle(request: ImageRequest) -> str:
    return (
        f"{request.steps} steps, guidance {request.guidance:g}; images side by side start from the"
        " same noise"
    )


def _save(folder: Path, cells: Sequence[_GridCell]) -> None:
    """Write the images one by one, and their list."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(SAMPLES_COLUMNS)
    for number, (request, *images) in enumerate(cells):
        names = [f"{number:03}-{when}.png" for when in ("before", "after")]
        for name, content in zip(names, images, strict=True):
            write_atomically(folder / name, png_bytes(content))
        writer.writerow((request.prompt, request.group, request.seed, *names))
    write_atomically(folder / SAMPLES_FILE, text.getvalue().encode(errors="replace"))
