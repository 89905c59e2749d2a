"""`Dashboard`: a run on Weights & Biases and TensorBoard, so that a team sees and compares it."""

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
    """Shows a run where a W&B or a TensorBoard logger is there.

    Beside the curves that every logger gets: what the run is, the grid, its pictures as a table,
    the figures with their intervals, the cost, and the edit as an artifact.

    It reads what other callbacks have written into the run's folder, each time after all of them.

    Args:
        edit: Whether the edit itself is kept on the board; that of a whole denoiser may be
            gigabytes.
    """

    def __init__(self, edit: bool = True) -> None:
        self.edit = edit

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the run is."""
        self._begin(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the run is."""
        self._begin(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the run is."""
        self._begin(trainer, pl_module)

    @staticmethod
    def _begin(trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero and isinstance(module, ErasureModule):
            for board in dashboard_writers(trainer.loggers, trainer.global_step):
                board.log_config(run_config(module.description()))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show what a fit has cost, and the edit."""
        if trainer.is_global_zero and stage == "fit":
            run = Run(Path(trainer.default_root_dir))
            for board in dashboard_writers(trainer.loggers, trainer.global_step):
                show_cost(board, run)
                if self.edit and run.edit.is_file():
                    show_edit(board, run)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what was drawn and measured."""
        self._measured(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what was drawn and measured."""
        self._measured(trainer)

    @staticmethod
    def _measured(trainer: Trainer) -> None:
        run = Run(Path(trainer.default_root_dir))
        for board in (
            dashboard_writers(trainer.loggers, trainer.global_step)
            if trainer.is_global_zero
            else ()
        ):
            show_samples(board, run)
            if run.metrics.is_file():
                show_figures(board, Result.load(run.metrics))
