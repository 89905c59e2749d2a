"""`fit`: trains a method and writes the folder of its run, as ``erasure fit`` does."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    Callback,
    ModelCheckpoint,
    ModelPruning,
    ProgressBar,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import Logger

from erasure_lightning.api.quiet import quiet
from erasure_lightning.api.trainer import default_steps, make_trainer, require_different_states
from erasure_lightning.callbacks.cost import Cost
from erasure_lightning.callbacks.dashboard import Dashboard
from erasure_lightning.callbacks.edit_export import ExportEdit
from erasure_lightning.callbacks.edit_validation import EditValidation
from erasure_lightning.callbacks.image_writer import ImageWriter
from erasure_lightning.callbacks.interrupt import LastCheckpoint
from erasure_lightning.callbacks.measure import Measure
from erasure_lightning.callbacks.progress import Progress
from erasure_lightning.callbacks.sample_grid import SampleGrid
from erasure_lightning.callbacks.watchdog import Watchdog
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.distributed.lightning_internals import launches_by_multiprocessing
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.locks import lock_folder
from erasure_lightning.runs.csv_log import MetricsFile
from erasure_lightning.runs.folder import Run, default_run, unused_folder
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.checkpoints import (
    PlainCheckpointIO,
    check_resumption,
    locate_checkpoint,
    read_checkpoint,
)
from erasure_lightning.training.strategies import register_strategies

#: Arguments of the trainer that neither a config nor an argument sets.
TRAINER = {
    "max_steps": 100,
    "max_epochs": 1,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 20,
}

#: Callbacks of Lightning that copy, freeze or prune weights in ``setup``, before `configure_model`.
_NEED_WEIGHTS = (BaseFinetuning, ModelPruning, StochasticWeightAveraging)


def fit(
    module: ErasureModule,
    data: PromptData | None = None,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    logger: Sequence[Logger] | bool = True,
    measure: bool = True,
    save_every: int = 25,
    hang_timeout: float = 1500.0,
    progress_bar: bool = True,
    **trainer: Any,
) -> Run:
    """Train a method, measure its edit, and write the run's folder.

    Args:
        module: The method, with its concepts and backbone.
        data: Prompts to train on and images to measure; by default `PromptData` of its defaults.
        run_dir: The run's folder, which must hold no run; by default ``runs/METHOD-CONCEPTS``.
        resume: Go on from the last checkpoint of an interrupted run in that folder, with a module,
            data and arguments like those that it began with.
        callbacks: Retention callbacks, and any others; those that every run has are added.
        logger: Loggers beside the run's ``metrics.csv``; False for none at all.
        measure: Whether the edit is measured when training has ended.
        save_every: Steps between two checkpoints, at least 1.
        hang_timeout: Seconds without a batch after which the ranks of a run end, above 0.
        progress_bar: Whether progress is shown.
        trainer: Arguments of Lightning's trainer: ``max_steps``, ``devices``, ``strategy`` and
            others; ``max_steps`` is the method's own by default.

    Returns:
        The run's folder, by the names of its files.

    Raises:
        ErasureError: If the folder holds a run, or none to resume, an argument cannot be used, or
            the edit would change no weight or hold NaN.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from erasure_lightning import Concept, PromptData, fit
        >>> from erasure_lightning.backbones.tiny import TinyBackbone
        >>> from erasure_lightning.methods import UCE
        >>> module = UCE(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
        >>> with TemporaryDirectory() as folder:
        ...     run = fit(module, run_dir=folder, measure=False, progress_bar=False)
        ...     run.edit.name
        'edit.safetensors'
    """
    run = Run(Path(run_dir) if run_dir is not None else _default_folder(module), in_python=True)
    check = run.check_resumable if resume else partial(run.check_unused, "run_dir")
    check()
    steps = trainer.get("max_steps", default_steps(module))
    checkpoint = _resumed(run, module, steps) if resume else None
    keeper = LastCheckpoint(save_every, in_python=True)
    watchdog = Watchdog(hang_timeout)
    register_strategies(module.has_unused, hang_timeout)
    with quiet(), keeper.watching(), torch.random.fork_rng(devices=[]):
        session = make_trainer(
            fit,
            **TRAINER | trainer | {"max_steps": steps},
            default_root_dir=str(run.root),
            logger=run_loggers(run, logger),
            callbacks=run_callbacks(callbacks, keeper, watchdog, progress_bar=progress_bar),
            plugins=PlainCheckpointIO(),
            enable_progress_bar=progress_bar,
        )
        keeper.listen_in(session)
        torch.manual_seed(module.seed)
        with running(session, run, watchdog, check):
            train(session, module, data or PromptData(), checkpoint, measure=measure)
    return run


def _resumed(run: Run, module: ErasureModule, max_steps: int) -> Path:
    """The checkpoint from which a module's run goes on.

    Raises:
        ErasureError: If there is none, or none of such a run.
    """
    path = locate_checkpoint(str(run.root), "fit")
    check_resumption(path, read_checkpoint(path), module.arguments(), max_steps)
    return path


def run_callbacks(
    chosen: Sequence[Callback],
    keeper: LastCheckpoint,
    watchdog: Watchdog,
    *,
    config: str = "",
    fast_dev_run: bool = False,
    checkpoints: bool = True,
    progress_bar: bool = True,
) -> list[Callback]:
    """The callbacks of a run: those that were chosen, and those that every run has.

    Args:
        chosen: The user's; one of a class that every run has takes the place of ours.
        keeper: Saves the run while it trains.
        watchdog: Ends ranks that wait for one that has ended.
        config: The run's config as text, stored in the edit.
        fast_dev_run: Whether Lightning only tries the run, which then leaves no file.
        checkpoints: Whether the run is saved while it trains.
        progress_bar: Whether progress is shown.

    Raises:
        ErasureError: If one of the user's cannot work on a model that the run itself loads, or
            overwrites the run's checkpoint, or two of them equal each other.
    """
    require_different_states(chosen)
    for callback in chosen:
        _check_callback(callback)
    own: list[Callback] = [Measure(), SampleGrid(), ImageWriter(), Dashboard()]
    if not fast_dev_run:
        own += [Cost(), EditValidation(), ExportEdit(config)]
        own += [keeper] if checkpoints else []
    own = [callback for callback in own if type(callback) not in map(type, chosen)]
    shown = progress_bar and not any(isinstance(callback, ProgressBar) for callback in chosen)
    return [*chosen, *([Progress()] if shown else []), *own, watchdog]


def _check_callback(callback: Callback) -> None:
    """Raise for a callback of Lightning that cannot work in a run."""
    if isinstance(callback, _NEED_WEIGHTS):
        raise ErasureError(
            f"{type(callback).__name__} needs the weights before the run has loaded them, and"
            " would have no effect or fail: leave it out."
        )
    if isinstance(callback, ModelCheckpoint) and callback.save_last and not callback.dirpath:
        raise ErasureError(
            "ModelCheckpoint with save_last writes checkpoints/last.ckpt, from which the run"
            " resumes and which it saves itself (--save_every): leave save_last out, or give"
            " another folder as dirpath."
        )


def run_loggers(run: Run, chosen: Sequence[Logger] | bool) -> list[Logger] | bool:
    """The loggers of a run: its ``metrics.csv``, and those that were chosen; none for False."""
    if chosen is False:
        return False
    return [MetricsFile(run.root), *([] if chosen is True else chosen)]


@contextmanager
def running(
    trainer: Trainer, run: Run, watchdog: Watchdog, prepare: Callable[[], None]
) -> Iterator[None]:
    """Lock a run's folder and monitor its ranks.

    Args:
        trainer: Trainer of the run.
        run: Its folder, which the first rank locks, unless Lightning only tries the run.
        watchdog: Monitors the ranks.
        prepare: Checks and fills the folder once it is locked.

    Raises:
        ErasureError: If the ranks would be children of this process, as in a notebook.
    """
    if launches_by_multiprocessing(trainer):
        raise ErasureError(
            "A run on several devices needs ranks that are programs (strategy ddp or fsdp2); found"
            " children of this process, as a notebook starts them. Run it as a script or with"
            " `erasure fit`, or give devices=1."
        )
    writes = trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False)
    with _locked(run, prepare) if writes else nullcontext(), watchdog.watching(trainer):
        yield


@contextmanager
def _locked(run: Run, prepare: Callable[[], None]) -> Iterator[None]:
    with lock_folder(run.root):
        has_config = run.config.exists()
        prepare()  # another run may have ended here meanwhile
        try:
            yield
        except ErasureError:
            if not has_config and unused_folder(run.root) == run.root:  # refused before a result
                run.config.unlink(missing_ok=True)
            raise


def train(
    trainer: Trainer,
    module: ErasureModule,
    data: PromptData,
    checkpoint: Path | None = None,
    measure: bool = True,
) -> None:
    """Train, and measure the edit.

    Args:
        trainer: Trainer of the run.
        module: The method.
        data: Its prompts.
        checkpoint: Checkpoint to resume from.
        measure: Whether the edit is measured.
    """
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    if measure and not getattr(trainer, "fast_dev_run", False):
        trainer.test(module, datamodule=data, verbose=False)


def _default_folder(module: ErasureModule) -> Path:
    return default_run(type(module).__name__, [concept.name for concept in module.concepts]).root
