"""`ExportEdit`: writes the edit at the end of a fit."""

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from erasure_lightning.runs.folder import Run
from erasure_lightning.training.base import ErasureModule


class ExportEdit(Callback):
    """Writes ``edit.safetensors`` into the run's folder: the changed weights, with metadata.

    Args:
        config: The run's config as text, stored in the edit.
    """

    def __init__(self, config: str = "") -> None:
        self.config = config

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the edit."""
        if not isinstance(pl_module, ErasureModule):
            return
        metadata = {"config": self.config} if self.config else {}
        pl_module.save_edit(Run(Path(trainer.default_root_dir)).edit, **metadata)
