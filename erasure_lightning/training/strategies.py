"""Several devices: ``ddp`` and ``fsdp2``, Lightning's strategies with defaults and checkpoints that
suit an edit.
"""

import difflib
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

from erasure_lightning.distributed.fsdp import split_state, whole_state
from erasure_lightning.distributed.lightning_internals import shard_over_all_ranks
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.base import BACKBONE_PREFIX, ErasureModule

#: What ``--trainer.strategy`` calls it.
NAME = "fsdp2"

#: Names that ``--trainer.strategy`` takes. Others start processes otherwise, or split weights as no
#: checkpoint of an edit does.
NAMES = ("auto", "ddp", NAME, "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")

#: Seconds for which collectives wait longer than ranks that hang are given, so that these are named
#: first.
GRACE = 300.0


class FSDP2(ModelParallelStrategy):
    """Splits weights, gradients and optimizer states over all devices; `sharding` tells how.

    A checkpoint is the one file that a single process would write: the edit, and the optimizer's
    states, whole. So a run goes on on any number of devices, under any strategy.

    Args:
        process_group_backend: ``nccl`` or ``gloo``; by default what suits the devices.
        timeout: How long a rank waits for the others.
    """

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

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimizers' states to `load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """Take all devices, where Lightning's ``auto`` takes the number of nodes."""
        shard_over_all_ranks(self)
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: `ErasureModule.on_save_checkpoint` puts the edit in, and the frozen rest is not
        gathered.
        """
        return {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every rank its part of the edit."""
        edit = {
            name.removeprefix(BACKBONE_PREFIX): value
            for name, value in checkpoint["state_dict"].items()
        }
        cast(ErasureModule, self.lightning_module).write(edit)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The states of all ranks together."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return whole_state(plain.state_dict())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every rank its part of the states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(split_state(optimizer, state))

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the one file, as any other strategy does."""
        return ParallelStrategy.load_checkpoint(
            self, self.broadcast(checkpoint_path), weights_only=weights_only
        )


def check(given: object) -> None:
    """Raise for the name of a strategy that is none, or under which no run of ours works; a class
    is its user's own.

    Raises:
        ErasureError: If so.
    """
    if isinstance(given, str) and given not in NAMES:
        near = difflib.get_close_matches(given, NAMES, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ErasureError(
            "--trainer.strategy needs auto, ddp, fsdp2, or a class_path with init_args; found"
            f" {given!r}.{meant}"
        )


def register(has_unused: bool = False, hang_timeout: float = 1500.0) -> None:
    """Let ``--trainer.strategy`` know ours by name, and what suits an edit by those of Lightning.

    Args:
        has_unused: Whether some of what is trained may have no gradient in a step.
        hang_timeout: Seconds after which ranks that hang are given up.
    """
    timeout = timedelta(seconds=hang_timeout + GRACE)
    about = "Splits weights over devices (FSDP2)"
    StrategyRegistry.register(NAME, FSDP2, description=about, override=True, timeout=timeout)
    # Also what several devices get if nothing is said. Buffers are alike on all ranks; gradients
    # are sent as they lie.
    StrategyRegistry.register(
        "ddp", DDPStrategy, description="Gradients are averaged over devices", override=True, timeout=timeout,
        find_unused_parameters=has_unused, broadcast_buffers=False, gradient_as_bucket_view=True,
    )  # fmt: skip
