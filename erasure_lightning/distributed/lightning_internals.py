"""Private attributes of Lightning 2.6 in use, each with the public call that is missing.

A new version of Lightning is checked against this file; no other one uses what is private there.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from subprocess import Popen
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher


def after_signal_handlers(trainer: Trainer, action: Callable[[], None]) -> None:
    """Run an action whenever the trainer has registered its signal handlers.

    Missing: a hook after ``trainer.fit`` has set its handlers, or an argument that keeps ours.
    """
    connector = trainer._signal_connector
    register = connector.register_signal_handlers

    def register_then_act() -> None:
        register()
        action()

    connector.register_signal_handlers = register_then_act  # type: ignore[method-assign]


def keep_signal_handlers(trainer: Trainer) -> None:
    """Keep the signal handlers of the process in a fit, in which Lightning's ignore SIGTERM.

    Missing: an argument of the trainer that sets no handlers.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def training_precision(module: LightningModule) -> AbstractContextManager[Any]:
    """The context of a module's training steps, with their autocast; none without a trainer.

    Missing: a property that says whether a module has a trainer.
    """
    trainer = module._trainer
    return trainer.precision_plugin.train_step_context() if trainer else nullcontext()


def launches_by_multiprocessing(trainer: Trainer) -> bool:
    """Whether all ranks, the first too, are children of this process, as in a notebook.

    Missing: a public class of the launcher.
    """
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def take_launched(trainer: Trainer) -> list["Popen[bytes]"]:
    """Take the processes of other ranks from Lightning, which kills all of them when one fails.

    Missing: an option that leaves the end of a failed rank to a callback.

    Args:
        trainer: Trainer of the rank that started them; it has none where another launcher did.
    """
    launched: list[Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    taken = []
    while launched:  # one by one, because another thread may be appending
        taken.append(launched.pop(0))
    return taken


def shard_over_all_ranks(strategy: Any) -> None:
    """Make a ``ModelParallelStrategy`` shard over the devices of all nodes.

    Missing: ``data_parallel_size="all"``; ``"auto"`` stands for the number of nodes.
    """
    strategy._data_parallel_size = strategy.num_processes * strategy.num_nodes


def jump_to_step(trainer: Trainer, step: int) -> None:
    """Make ``trainer.global_step`` a later one.

    Missing: a setter of ``trainer.global_step``.
    """
    loop = trainer.fit_loop.epoch_loop.automatic_optimization
    progress = loop.optim_progress.optimizer.step.total
    progress.ready = step
    progress.completed = step


def open_wandb_run(logger: WandbLogger) -> Any:
    """The W&B run of a logger, ``None`` before it is used.

    Missing: a look at ``logger.experiment`` that starts no run.
    """
    return logger._experiment
