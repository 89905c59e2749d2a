"""Checkpoints of runs that are killed or interrupted."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from erasure_lightning.distributed.lightning_internals import after_signal_handlers
from erasure_lightning.errors import ErasureError
from erasure_lightning.runs.folder import Run

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Raised when a signal of the user or the system ends the run.

    Args:
        number: The signal.
        message: What was saved and how to resume.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code: int = 128 + number


class LastCheckpoint(Checkpoint):
    """Saves ``checkpoints/last.ckpt`` every few steps and when interrupted.

    A second interruption stops at once. A checkpoint is written beside the last one and replaces it
    when the next step begins, because Lightning logs a step after its callbacks have seen its end,
    and a kill between the two would lose the row. The checkpoint of the last step never replaces
    it: a run resumed from there would skip the end of training, in which methods and callbacks
    finish their work.

    Args:
        every: Steps between two saves, at least 1.
        in_python: Whether the run is one of `fit` in Python.

    Raises:
        ErasureError: If ``every`` is below 1.
    """

    def __init__(self, every: int = 25, in_python: bool = False) -> None:
        self.set_every(every)
        self.in_python = in_python
        self._signal: int | None = None
        self._training = False
        self._stopping = False
        self._waiting = False
        self._step = 0
        self._trainer: Trainer | None = None

    def set_every(self, every: int) -> None:
        """Set the steps between two saves.

        Raises:
            ErasureError: If ``every`` is below 1.
        """
        if every < 1:
            raise ErasureError(f"Saving needs --save_every of at least 1; found {every}.")
        self.every = every

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handle signals outside training too, where they stop at once."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._set_handlers()
        try:
            yield
        finally:
            for number, handler in before.items():
                _handle(number, handler)

    def listen_in(self, trainer: Trainer) -> None:
        """Replace a trainer's signal handlers, which wait for the other ranks."""
        self._trainer = trainer
        after_signal_handlers(trainer, self._set_handlers)

    def _set_handlers(self) -> None:
        for number in SIGNALS:
            _handle(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._training and self._signal is None:
            self._signal = number
            return
        raise Interrupted(number, at_once(self._trainer, self.in_python))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Interruptions from here on save the run."""
        self._training = True
        self._step = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make the last step's checkpoint the current one, and stop after a signal.

        Raises:
            Interrupted: If a signal came during that step.
        """
        if self._waiting and trainer.is_global_zero:
            run = _run(trainer)
            run.next.replace(run.last)
        self._waiting = False
        if self._stopping:
            self._training = False
            saved = f"Interrupted after step {trainer.global_step} and saved; go on with"
            raise Interrupted(
                self._signal or signal.SIGTERM,
                f"{saved} `{_run(trainer, self.in_python).command}`.",
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when due or after a signal to any rank."""
        stop = _any(trainer, self._signal is not None)
        if (
            trainer.global_step == self._step
        ):  # gradients are being added up, and a checkpoint does not hold them
            return
        self._step = trainer.global_step
        self._stopping = stop
        if stop or self._step % self.every == 0:
            trainer.save_checkpoint(_run(trainer).next)
            self._waiting = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the last step's checkpoint, or one that a killed part of the run has left."""
        if trainer.is_global_zero:
            _run(trainer).next.unlink(missing_ok=True)
        self._waiting = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the edit is written, if a signal came in the last step.

        Raises:
            Interrupted: If one came.
        """
        self._training = False
        if _any(trainer, self._signal is not None):
            written = "Interrupted after the last step; the edit is written. Measure it with"
            raise Interrupted(
                self._signal or signal.SIGTERM,
                f"{written} `{_run(trainer, self.in_python).command}`.",
            )


def at_once(trainer: Trainer | None, in_python: bool = False) -> str:
    """Message of an interruption without a save, with the command to resume.

    Args:
        trainer: Trainer of the run, if it exists yet.
        in_python: Whether the run is one of `fit` in Python.
    """
    command = _run(trainer, in_python).command if trainer else ""
    go_on = f" Go on with `{command}`." if command else ""
    return f"Interrupted at once; what was written before is untouched.{go_on}"


def _handle(number: int, handler: Any) -> None:
    """Set a signal's handler in the main thread, the only one that signals reach."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _run(trainer: Trainer, in_python: bool = False) -> Run:
    return Run(Path(trainer.default_root_dir), in_python)


def _any(trainer: Trainer, flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return trainer.strategy.reduce_boolean_decision(flag, all=False)
