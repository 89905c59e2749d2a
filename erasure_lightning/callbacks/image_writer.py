"""`ImageWriter`: the pictures of ``predict`` as files, and a manifest that says what each of them
is.
"""

import csv
import io
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from erasure_lightning.data.image_grid import png_bytes, to_pil
from erasure_lightning.data.image_plan import ImageLoader, ImageRequest
from erasure_lightning.distributed.collectives import all_gather_items
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically

MANIFEST = "manifest.csv"
COLUMNS = (
    "case_number",
    "prompt",
    "evaluation_seed",
    "steps",
    "guidance",
    "height",
    "width",
    "edited",
    "original",
)


class ImageWriter(Callback):
    """Writes ``edited/CASE.png`` and ``original/CASE.png`` as they come, and ``manifest.csv`` once
    all are there.

    Raises:
        ErasureError: If the run's folder holds a manifest already, or cannot be written to.
    """

    def __init__(self) -> None:
        self._written: list[ImageRequest] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to write over a finished run."""
        path = Path(trainer.default_root_dir, MANIFEST)
        if path.exists():
            raise ErasureError(
                f"predict needs a folder of its own; found {path} of a finished run. Name another"
                " folder."
            )
        self._written = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *_: int,
    ) -> None:
        """Write a batch, so that a killed run keeps what it has drawn."""
        for kind in ("original", "edited"):
            for shot, picture in zip(batch.requests, outputs[kind], strict=True):
                write_atomically(
                    Path(trainer.default_root_dir, kind, f"{shot.case}.png"),
                    png_bytes(to_pil(picture)),
                )
        self._written += batch.requests

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what all ranks have drawn into the manifest."""
        drawn = {
            shot.case for shot in all_gather_items(self._written)
        }  # by several ranks, and not in the order of the file
        sheet = cast(ImageLoader, trainer.predict_dataloaders)
        if trainer.is_global_zero:
            in_order = [shot for shot in sheet.requests if shot.case in drawn]
            write_atomically(Path(trainer.default_root_dir, MANIFEST), _manifest(in_order))


def _manifest(shots: list[ImageRequest]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for s in shots:
        size = (
            ("", "") if s.size is None else (s.size, s.size) if isinstance(s.size, int) else s.size
        )
        files = (f"{kind}/{s.case}.png" for kind in ("edited", "original"))
        writer.writerow((s.case, s.prompt, s.seed, s.steps, s.guidance, *size, *files))
    return text.getvalue().encode()
