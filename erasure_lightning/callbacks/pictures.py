"""`PictureWriter`: the pictures of ``predict`` as files, and a manifest that says what each of them is."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from erasure_lightning.callbacks.contact import image, png
from erasure_lightning.edits import write_atomically
from erasure_lightning.errors import ErasureError
from erasure_lightning.ranks import gathered
from erasure_lightning.shots import Shot

MANIFEST = "manifest.csv"
COLUMNS = ("case_number", "prompt", "evaluation_seed", "steps", "guidance", "edited", "original")


class PictureWriter(Callback):
    """Writes ``edited/CASE.png`` and ``original/CASE.png`` as they come, and ``manifest.csv`` once all are there.

    Raises:
        ErasureError: If the run's folder holds a manifest already, or cannot be written to.
    """

    def __init__(self) -> None:
        self._written: list[tuple[int, Shot]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to write over a finished run."""
        path = Path(trainer.default_root_dir, MANIFEST)
        if path.exists():
            raise ErasureError(
                f"predict needs a folder of its own; found {path} of a finished run. Name another folder."
            )
        self._written = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Write a batch, so that a killed run keeps what it has drawn."""
        for kind in ("original", "edited"):
            for shot, picture in zip(batch.shots, outputs[kind], strict=True):
                write_atomically(Path(trainer.default_root_dir, kind, f"{shot.case}.png"), png(image(picture)))
        # Ranks take turns with the batches, so this restores the order of the prompt file.
        self._written += [(batch_idx * trainer.world_size + trainer.global_rank, shot) for shot in batch.shots]

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what all ranks have drawn into the manifest."""
        written = sorted(gathered(self._written), key=lambda pair: pair[0])
        if trainer.is_global_zero:
            once = {shot.case: shot for _, shot in written}  # ranks that keep step may have drawn one twice
            write_atomically(Path(trainer.default_root_dir, MANIFEST), _manifest(list(once.values())))


def _manifest(shots: list[Shot]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for s in shots:
        files = (f"{kind}/{s.case}.png" for kind in ("edited", "original"))
        writer.writerow((s.case, s.prompt, s.seed, s.steps, s.guidance, *files))
    return text.getvalue().encode()
