"""`Dashboard`: shows a run on Weights & Biases and TensorBoard."""

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from erasure_lightning.metrics.protocol import Result
from erasure_lightning.runs.dashboard_content import (
    run_config,
    show_cost,
    show_edit,
    show_figures,
    show_samples,
)
from erasure_lightning.runs.dashboards import dashboard_writers
from erasure_lightning.runs.folder import Run
from erasure_lightning.training.base import ErasureModule


class Dashboard(Callback):
    """Shows a run with every W&B or TensorBoard logger of the trainer.

    Beside the logged curves: the run's description, the grid, its images as a table, the metrics
    with their intervals, the cost, and the edit as an artifact.

    It reads what other callbacks wrote into the run's folder, so it must be the last of them.

    Args:
        edit: Whether the edit is uploaded; that of a whole denoiser may be gigabytes.
    """

    def __init__(self, *, edit: bool = True) -> None:
        self.edit = edit

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the run's description."""
        if trainer.is_global_zero and isinstance(pl_module, ErasureModule):
            for writer in dashboard_writers(trainer.loggers, trainer.global_step):
                writer.log_config(run_config(pl_module.description()))

    on_test_start = on_validation_start = on_fit_start

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show the cost of a fit, and the edit."""
        if trainer.is_global_zero and stage == "fit":
            run = Run(Path(trainer.default_root_dir))
            for writer in dashboard_writers(trainer.loggers, trainer.global_step):
                show_cost(writer, run)
                if self.edit and run.edit.is_file():
                    show_edit(writer, run)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the images and metrics."""
        if not trainer.is_global_zero:
            return
        run = Run(Path(trainer.default_root_dir))
        for writer in dashboard_writers(trainer.loggers, trainer.global_step):
            show_samples(writer, run)
            if run.metrics.is_file():
                show_figures(writer, Result.load(run.metrics))

    on_validation_end = on_test_end
