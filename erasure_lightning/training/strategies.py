"""Strategies for several devices: ``ddp`` and ``fsdp2`` with defaults that suit an edit."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, cast

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    StrategyRegistry,
)
from torch.optim import Optimizer

from erasure_lightning.distributed.fsdp import full_optimizer_state, shard_optimizer_state
from erasure_lightning.distributed.lightning_internals import shard_over_all_ranks
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import did_you_mean
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.edit_state import BACKBONE_PREFIX

#: Name of `FSDP2` for ``--trainer.strategy``.
_FSDP2_NAME = "fsdp2"

#: Names that ``--trainer.strategy`` takes. Others start processes in another way, or split weights
#: as no checkpoint of an edit does.
_STRATEGY_NAMES = (
    "auto",
    "ddp",
    _FSDP2_NAME,
    "ddp_find_unused_parameters_false",
    "ddp_find_unused_parameters_true",
)

#: Seconds that collectives wait beyond the hang timeout, so that the ranks that hang are reported
#: first.
_GRACE = 300.0


class FSDP2(ModelParallelStrategy):
    """Splits weights, gradients and optimizer states over all devices (`distributed.fsdp`).

    A checkpoint is the one file that a single process would write: the edit, and the optimizer's
    states, whole. A run can thus be resumed on any number of devices, under any strategy.

    Args:
        process_group_backend: ``nccl`` or ``gloo``; by default the one for the devices.
        timeout: How long a rank waits for the others.
    """

    #: Lightning passes the optimizers' states to `load_optimizer_state_dict`.
    lightning_restore_optimizer = True

    def __init__(
        self,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        """Splits over all devices, where Lightning's ``auto`` takes the number of nodes."""
        shard_over_all_ranks(self)
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Empty: `ErasureModule.on_save_checkpoint` adds the edit; frozen weights stay split."""
        return {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Distributes the edit over the ranks."""
        edit = {
            name.removeprefix(BACKBONE_PREFIX): value
            for name, value in checkpoint["state_dict"].items()
        }
        cast(ErasureModule, self.lightning_module).write(edit)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The states of all ranks, whole."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return full_optimizer_state(plain.state_dict())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Distributes the states over the ranks."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(shard_optimizer_state(optimizer, state))

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads the one file, as any other strategy does."""
        return ParallelStrategy.load_checkpoint(
            self, self.broadcast(checkpoint_path), weights_only=weights_only
        )


def check_strategy(strategy: object) -> None:
    """Raises for the name of an unknown strategy, or of one that cannot train an edit.

    Args:
        strategy: What ``--trainer.strategy`` was set to; only names are checked, no classes.

    Raises:
        ErasureError: If the name is not supported.
    """
    if isinstance(strategy, str) and strategy not in _STRATEGY_NAMES:
        raise ErasureError(
            "--trainer.strategy needs auto, ddp, fsdp2, or a class_path with init_args; found"
            f" {strategy!r}.{did_you_mean(strategy, _STRATEGY_NAMES)}"
        )


def register_strategies(has_unused: bool = False, hang_timeout: float = 1500.0) -> None:
    """Registers ``fsdp2``, and ``ddp`` with defaults that suit an edit, for ``--trainer.strategy``.

    Args:
        has_unused: Whether some of what is trained may have no gradient in a step.
        hang_timeout: Seconds after which ranks that hang are given up.
    """
    StrategyRegistry.register(
        _FSDP2_NAME,
        FSDP2,
        description="Splits weights over devices (FSDP2)",
        override=True,
        timeout=timedelta(seconds=hang_timeout + _GRACE),
    )
    # ``ddp`` is also what several devices get by default. Buffers are equal on all ranks, and
    # gradients are sent without a copy.
    StrategyRegistry.register(
        "ddp",
        DDPStrategy,
        description="Gradients are averaged over devices",
        override=True,
        timeout=timedelta(seconds=hang_timeout + _GRACE),
        find_unused_parameters=has_unused,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
