"""Keeps a run that is killed or interrupted resumable."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from erasure_lightning.errors import ErasureError
from erasure_lightning.runs import Run

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user, or the system, asked to stop.

    Args:
        number: The signal.
        message: What was saved, and how to go on.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code: int = 128 + number


class LastCheckpoint(Checkpoint):
    """Saves ``checkpoints/last.ckpt`` every so many steps, and when interrupted; a second interruption stops at once.

    Lightning logs a step after its callbacks have seen its end. So that no kill comes between the two and costs a row,
    a checkpoint is written beside the last one, and takes its place once the step's row is there.

    Args:
        every: Steps between two saves, at least 1.

    Raises:
        ErasureError: If ``every`` is below 1.
    """

    def __init__(self, every: int = 25) -> None:
        self.set_every(every)
        self._asked: int | None = None
        self._training = self._stopping = self._waiting = False
        self._saved = 0

    def set_every(self, every: int) -> None:
        """Change the steps between two saves.

        Raises:
            ErasureError: If ``every`` is below 1.
        """
        if every < 1:
            raise ErasureError(f"Saving needs --save_every of at least 1; found {every}.")
        self.every = every

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hear of interruptions outside training too, where they stop at once."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._training and self._asked is None:
            self._asked = number
            return
        raise Interrupted(number, "Interrupted at once; what was written before is untouched.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back from Lightning, which would end the run in the middle of a step."""
        self._training = True
        self._listen()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the last step's checkpoint for good, and stop if asked to.

        Raises:
            Interrupted: If a signal came during that step.
        """
        self._settle(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same after the last step; from here on there is nothing to save but the result.

        Raises:
            Interrupted: If one came.
        """
        self._settle(trainer)
        self._training = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time, or when asked to stop; every rank stops if one was asked to."""
        self._stopping = trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False)
        due = trainer.global_step > self._saved and trainer.global_step % self.every == 0
        if self._stopping or due:
            self._save(trainer)

    def _settle(self, trainer: Trainer) -> None:
        if self._waiting and trainer.is_global_zero:
            run = Run(Path(trainer.default_root_dir))
            run.next.replace(run.last)
        self._waiting = False
        if self._stopping:
            self._training = False
            raise Interrupted(self._asked or signal.SIGTERM, _farewell(trainer))

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(Run(Path(trainer.default_root_dir)).next)
        self._saved, self._waiting = trainer.global_step, True


def _farewell(trainer: Trainer) -> str:
    folder = trainer.default_root_dir
    return f"Interrupted after step {trainer.global_step} and saved; go on with `erasure fit --ckpt_path {folder}`."
