"""`ImageWriter`: writes the images of ``predict``, and a manifest of them."""

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

#: List of the images, in the order of the prompt file.
MANIFEST_FILE = "manifest.csv"

#: Columns of the manifest.
MANIFEST_COLUMNS = (
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
    """Writes ``edited/CASE.png`` and ``original/CASE.png`` after each batch of ``predict``.

    The manifest ``manifest.csv`` is written when all images are.

    Raises:
        ErasureError: If the run's folder has a manifest already, or cannot be written to.
    """

    def __init__(self) -> None:
        self._written: list[ImageRequest] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to overwrite a finished run."""
        path = Path(trainer.default_root_dir, MANIFEST_FILE)
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
        """Write the images of a batch, so that an interrupted run retains them."""
        for kind in ("original", "edited"):
            folder = Path(trainer.default_root_dir, kind)
            for request, pixels in zip(batch.requests, outputs[kind], strict=True):
                write_atomically(folder / f"{request.case}.png", png_bytes(to_pil(pixels)))
        self._written += batch.requests

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the manifest of all ranks' images."""
        # Ranks write in an order of their own, and padding makes some images twice.
        written = {request.case for request in all_gather_items(self._written)}
        loader = cast(ImageLoader, trainer.predict_dataloaders)
        if trainer.is_global_zero:
            in_order = [request for request in loader.requests if request.case in written]
            path = Path(trainer.default_root_dir, MANIFEST_FILE)
            write_atomically(path, _manifest(in_order))


def _manifest(requests: list[ImageRequest]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(MANIFEST_COLUMNS)
    for request in requests:
        files = (f"{kind}/{request.case}.png" for kind in ("edited", "original"))
        writer.writerow(
            (
                request.case,
                request.prompt,
                request.seed,
                request.steps,
                request.guidance,
                *_height_and_width(request),
                *files,
            )
        )
    return text.getvalue().encode()


def _height_and_width(request: ImageRequest) -> tuple[int, int] | tuple[str, str]:
    """In pixels; empty cells for the model's own size."""
    if request.size is None:
        return "", ""
    return (request.size, request.size) if isinstance(request.size, int) else request.size
