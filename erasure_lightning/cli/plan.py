"""``erasure plan``: the memory and the work of a fit, before it runs."""

import logging
import warnings
from dataclasses import asdict
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from erasure_lightning.api.quiet import silence
from erasure_lightning.backbones.eight_bit import refuse_sharding
from erasure_lightning.callbacks.interrupt import LastCheckpoint
from erasure_lightning.callbacks.watchdog import Watchdog
from erasure_lightning.checks import require
from erasure_lightning.cli.plan_sentences import work_sentences
from erasure_lightning.cli.run import CommandLine
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import json_text
from erasure_lightning.planning.device_memory import DeviceMemory, memory_advice
from erasure_lightning.planning.forecast import LARGEST_BATCH, FitForecast, forecast_fit
from erasure_lightning.training.optimizers import check_eight_bits

_GIB = 2**30

#: GiB that a device needs for itself: its context, and the scratch memory of kernels.
_RESERVED = 1

#: Devices of a node, for which the plan of a single device says whether shards would fit.
_MANY_DEVICES = 8

#: Arguments of the trainer that change what a step needs.
_TRAINER_ARGUMENTS = (
    "max_steps",
    "max_epochs",
    "limit_train_batches",
    "overfit_batches",
    "fast_dev_run",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
)


def print_plan(argv: list[str]) -> int:
    """Print what a fit needs, and whether it fits.

    Returns:
        1 if ``--gpu_memory`` is too little, else 0.

    Raises:
        ErasureError: If `erasure fit` would refuse the arguments.
        Interrupted: If a signal came.
    """
    silence()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    keeper = LastCheckpoint()
    with keeper.watching():
        return Planner(argv, keeper).print_plan()


class Planner(CommandLine):
    """`CommandLine` of a fit that is forecast: two of its steps are taken, without values.

    Args:
        argv: The arguments behind the command.
        keeper: Stops the plan at a signal.
    """

    def __init__(self, argv: list[str], keeper: LastCheckpoint) -> None:
        super().__init__("plan", argv, keeper)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add a device's memory and the form of the answer to the options of a fit."""
        super().add_default_arguments_to_parser(parser)
        parser.add_argument(
            "--gpu_memory", type=float | None, help="GiB of each device; is it enough?"
        )
        parser.add_argument(
            "--json", action="store_true", help="Print JSON, in bytes, for programs."
        )

    def before_instantiate_classes(self) -> None:
        """Read devices and strategy; a plan has no folder and no logger.

        Raises:
            ErasureError: If a number is out of range, or the number of devices or the precision
                cannot be planned.
        """
        config = self.config
        trainer = config.trainer
        self.keeper.set_every(config.save_every)  # these two refuse what a fit would
        Watchdog(config.hang_timeout)
        require("erasure plan", above=0, **{"--gpu_memory": config.gpu_memory})
        self.devices_per_node = self._devices_per_node()
        counts = {"devices": self.devices_per_node, "num_nodes": trainer.num_nodes}
        for name, count in counts.items():
            require("erasure plan", at_least=1, **{f"--trainer.{name}": count})
        self.devices = self.devices_per_node * trainer.num_nodes
        if str(trainer.precision) not in ("None", "32", "32-true", "bf16-mixed"):
            raise ErasureError(
                "erasure plan knows the precisions 32-true and bf16-mixed; found"
                f" {trainer.precision}. For weights in bfloat16 give --model.base_dtype bfloat16."
            )
        strategy = "fsdp2" if trainer.strategy == "fsdp2" else "ddp"
        self.strategy = strategy if self.devices > 1 else "one device"
        trainer.logger = False

    def _devices_per_node(self) -> int:
        """The devices of a node, in any of Lightning's forms: ``4``, ``"0,1"``, ``[0, 1]``."""
        devices = self.config.trainer.devices
        if devices == "auto" and "--trainer.devices" not in self.options.names():
            return 1  # the trainer's default, which also the config of a run holds
        if isinstance(devices, str) and "," in devices:
            devices = [number for number in devices.split(",") if number]
        if isinstance(devices, list):
            return len(devices)
        if not str(devices).isdecimal():
            raise ErasureError(
                f"erasure plan needs the number of devices of a node; found {devices}, which does"
                " not say it: give --trainer.devices NUMBER."
            )
        return int(devices)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None: `forecast` makes its own."""
        return None

    def print_plan(self) -> int:
        """Print what the fit needs; 1 if a device has less memory."""
        refuse_sharding(self.model.base_dtype, self.strategy == "fsdp2")
        eight_bits = getattr(self.model, "optimizer", "") == "adam8bit"
        forecast = self._forecast()
        if eight_bits and self.strategy == "fsdp2" and forecast.held.splits:
            check_eight_bits(split=True)  # the package is for the machine of the fit
        memory = DeviceMemory(forecast, self.devices, self.strategy)
        whole = self.model.base_dtype == "int8" or (eight_bits and forecast.held.splits)
        is_alone = self.devices == 1 and not whole
        sharded = DeviceMemory(forecast, _MANY_DEVICES, "fsdp2") if is_alone else None
        limit = self.config.gpu_memory
        fits = None if limit is None else memory.peak <= limit * _GIB
        if self.config.json:
            verdict = {"gpu_memory": limit and int(limit * _GIB), "fits": fits}
            verdict["sharded"] = sharded and sharded.plain()
            print(json_text(asdict(forecast) | memory.plain() | verdict, "A plan", indent=1))
            return int(fits is False)
        Console().print(_table(memory, type(self.model).__name__))
        for line in [*work_sentences(forecast, self.devices), *self._verdict(forecast, memory)]:
            print(line)
        if self.datamodule.batch_size > LARGEST_BATCH:
            print(f"Extrapolated from steps of at most {LARGEST_BATCH} prompts.")
        if sharded:
            print(_sharded_verdict(sharded.peak / _GIB, limit))
        return int(fits is False)

    def _forecast(self) -> FitForecast:
        trainer = self.config_init.trainer
        callbacks = trainer.callbacks or []
        arguments = {
            name: trainer[name] for name in _TRAINER_ARGUMENTS if trainer[name] is not None
        }
        try:
            return forecast_fit(
                self.model,
                self.datamodule,
                callbacks if isinstance(callbacks, list) else [callbacks],
                self.config.measure and not trainer.fast_dev_run,
                accelerator=str(trainer.accelerator),
                **arguments,
            )
        except MisconfigurationException as error:  # of the trainer, as of `erasure fit`
            raise ErasureError(str(error)) from error
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ErasureError(
                f"{type(self.model).__name__} asks {error.func} for values, which a plan does not"
                " have. Try a step of it: `erasure fit` with --trainer.fast_dev_run 1."
            ) from error

    def _verdict(self, forecast: FitForecast, memory: DeviceMemory) -> list[str]:
        limit = self.config.gpu_memory
        peak = memory.peak / _GIB
        if limit is None:
            return [f"Needs {peak:.2f} GiB on each device."]
        if peak <= limit - _RESERVED:
            return [f"Fits: {peak:.2f} of {limit:g} GiB on each device."]
        close = f"Close: {peak:.2f} of {limit:g} GiB, and a device needs up to 1 GiB for itself."
        short = f"Does not fit: {peak:.2f} GiB, and a device has {limit:g}."
        advice = memory_advice(forecast, memory, self.model, self.datamodule, self.devices_per_node)
        return [close if peak <= limit else short, *(f"  {line}" for line in advice)]


def _sharded_verdict(peak: float, limit: float | None) -> str:
    """A sentence about the same fit, sharded over the devices of a node, in GiB."""
    start = f"On {_MANY_DEVICES} devices with fsdp2"
    if limit is None:
        return f"{start} each needs {peak:.2f} GiB."
    fits = "fits" if peak <= limit - _RESERVED else "close" if peak <= limit else "does not fit"
    return f"{start}: {fits}, {peak:.2f} of {limit:g} GiB on each."


#: Phases of a fit, as the table names them.
_PHASES = {
    "preparing": "before the first step",
    "sampling": "while latents or images to train on are drawn",
    "step": "in a step",
    "monitoring": "while RetentionMonitor generates images",
    "measuring": "while the edit is measured",
}


def _table(memory: DeviceMemory, method: str) -> Table:
    where = (
        f"{memory.devices} devices, {memory.strategy}" if memory.devices > 1 else memory.strategy
    )
    table = Table("on each device", "GiB", title=f"{method}, planned for {where}")
    for name, size in memory.rows.items():
        if size or name not in ("bank", "copies between devices"):
            table.add_row(name, _gib(size))
    table.add_row("activations and temporaries", _gib(memory.activations), end_section=True)
    for name, size in memory.whens.items():
        style = "bold" if name == memory.when else None
        table.add_row(f"most {_PHASES[name]}", _gib(size), style=style)
    return table


def _gib(size: int) -> str:
    return f"{size / _GIB:.3f}" if size < _GIB else f"{size / _GIB:.2f}"
