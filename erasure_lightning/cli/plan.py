"""``erasure plan``: what a fit needs, before it runs."""

import logging
import warnings
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from erasure_lightning.api.quiet import silence
from erasure_lightning.callbacks.interrupt import LastCheckpoint
from erasure_lightning.callbacks.watchdog import Watchdog
from erasure_lightning.checks import require
from erasure_lightning.cli.run import CommandLine
from erasure_lightning.cli.short_names import options
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import json_text
from erasure_lightning.planning.forecast import (
    STUDENT_CALLS,
    TEACHER_CALLS,
    FitForecast,
    forecast_fit,
)
from erasure_lightning.training.optimizers import check_eight_bits
from erasure_lightning.training.trajectory_bank import TrajectoryBank

GIB = 2**30

#: Arguments of the trainer that change what a step needs.
_PLAYED = (
    "max_steps", "max_epochs", "limit_train_batches", "precision", "accumulate_grad_batches", "gradient_clip_val"
)  # fmt: skip

#: Strategies by the name that `--trainer.strategy` has for them.
STRATEGIES = ("ddp", "fsdp2")


def plan(argv: list[str]) -> int:
    """Say what a fit needs, and whether it fits.

    Returns:
        1 if the memory of a device was told and is too little, else 0.

    Raises:
        ErasureError: If the arguments are none that `erasure fit` would take.
    """
    silence()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    return Planner(argv).say()


class Planner(CommandLine):
    """The parser of `erasure fit`, for a fit that is only played.

    Args:
        argv: What stood behind the command.
    """

    def __init__(self, argv: list[str]) -> None:
        super().__init__("plan", argv, LastCheckpoint())

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add where it is to run, beside what a fit takes."""
        super().add_default_arguments_to_parser(parser)
        parser.add_argument(
            "--devices", type=int | None, help="How many on each node; by default the trainer's."
        )
        parser.add_argument(
            "--strategy", type=str | None, help="ddp or fsdp2, on several devices; ddp by default."
        )
        parser.add_argument(
            "--gpu-memory", type=float | None, help="GiB of each device; is it enough?"
        )
        parser.add_argument(
            "--json", action="store_true", help="Print JSON, in bytes, for programs."
        )

    def before_instantiate_classes(self) -> None:
        """Settle devices and strategy; a plan has no folder and no logger.

        Raises:
            ErasureError: If a number is unknown or out of range, or a strategy or precision cannot
                be planned.
        """
        config, given = self.config, self.config.trainer
        self.keeper.set_every(config.save_every)  # these two refuse what a fit would
        Watchdog(config.hang_timeout)
        self.on_each = self._on_each_node()
        self.devices = self.on_each * given.num_nodes
        strategy = config.strategy or (given.strategy if given.strategy in STRATEGIES else "ddp")
        require("erasure plan", above=0, **{"--gpu-memory": config.gpu_memory})
        if self.devices < 1 or strategy not in STRATEGIES:
            raise ErasureError(
                "erasure plan needs devices of at least 1, and the strategy ddp or fsdp2; found "
                f"{self.devices} and {strategy}."
            )
        if str(given.precision) not in ("None", "32", "32-true", "bf16-mixed"):
            raise ErasureError(
                "erasure plan knows the precisions 32-true and bf16-mixed; found"
                f" {given.precision}. For weights in bfloat16 give --model.base bfloat16."
            )
        self.strategy = strategy if self.devices > 1 else "one device"
        given.logger = False

    def _on_each_node(self) -> int:
        """How many devices, in whichever of Lightning's ways they were told: ``4``, ``"4"``,
        ``"0,1"``, ``[0, 1]``.
        """
        told = self.config.trainer.devices if self.config.devices is None else self.config.devices
        if told == "auto" and "--trainer.devices" not in dict(options(self.argv)):
            return (
                1  # nobody asked for it: it is the trainer's default, also in the config of a run
            )
        if isinstance(told, str) and "," in told:
            told = [number for number in told.split(",") if number]
        if isinstance(told, list):
            return len(told)
        if not str(told).isdecimal():
            raise ErasureError(
                f"erasure plan needs to know how many devices a node has; found {told}, which does"
                " not say: give --devices NUMBER."
            )
        return int(told)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None: the fit is played."""
        return None

    def say(self) -> int:
        """Play the fit and print what it needs; 1 if a device has less."""
        eight = getattr(self.model, "optimizer", "") == "adam8bit"
        found = self._played()
        if eight:
            check_eight_bits(split=self.strategy == "fsdp2" and found.held.splits)
        needs = Needs(found, self.devices, self.strategy)
        fits = (
            None if self.config.gpu_memory is None else needs.peak <= self.config.gpu_memory * GIB
        )
        if self.config.json:
            memory = {
                "gpu_memory": self.config.gpu_memory and int(self.config.gpu_memory * GIB),
                "fits": fits,
            }
            print(json_text(found.plain() | needs.plain() | memory, "A plan", indent=1))
        else:
            Console().print(_table(found, needs, type(self.model).__name__))
            for line in [*_counted(found, self.devices), *self._verdict(found, needs)]:
                print(line)
        return int(fits is False)

    def _played(self) -> FitForecast:
        given = self.config_init.trainer
        callbacks = (
            given.callbacks
            if isinstance(given.callbacks, list)
            else [given.callbacks] * bool(given.callbacks)
        )
        played = {name: given[name] for name in _PLAYED if given[name] is not None}
        where = {"accelerator": str(given.accelerator)}
        try:
            return forecast_fit(
                self.model, self.datamodule, callbacks, self.config.measure, **where, **played
            )
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ErasureError(
                f"{type(self.model).__name__} asks {error.func} for values, which a plan does not"
                " have. Try a step of it: `erasure fit` with --trainer.fast_dev_run 1."
            ) from error

    def _verdict(self, found: FitForecast, needs: "Needs") -> list[str]:
        memory, peak = self.config.gpu_memory, needs.peak / GIB
        if memory is None:
            return [f"Needs {peak:.2f} GiB on each device."]
        if peak <= memory - 1:
            return [f"Fits: {peak:.2f} of {memory:g} GiB on each device."]
        close = f"Close: {peak:.2f} of {memory:g} GiB, and a device needs up to 1 GiB for itself."
        return [
            (
                close
                if peak <= memory
                else f"Does not fit: {peak:.2f} GiB, and a device has {memory:g}."
            ),
            *(f"  {advice}" for advice in self._advice(found, needs)),
        ]

    def _advice(self, found: FitForecast, needs: "Needs") -> list[str]:
        """What to change, in the order of what it is likely to save."""
        module, when, data = self.model, needs.when, self.datamodule
        advice = []
        if when == "measuring":
            advice.append(
                f"Measuring needs most: --data.draw_size {max(data.draw_size // 4, 1)} (now"
                f" {data.draw_size})."
            )
        bank = getattr(module, "latents", None)
        if when in ("sampling", "preparing") and isinstance(bank, TrajectoryBank):
            advice.append(
                f"Rolling the bank out needs most: give it a batch_size below {bank.batch_size}."
            )
        if when == "step" and not module.checkpointing:
            advice.append(
                "--model.checkpointing true keeps fewer activations, and takes about a third"
                " longer."
            )
        if module.base == "float32":
            advice.append("--model.base bfloat16 halves the frozen weights and most activations.")
        if when == "step" and data.batch_size > 1:
            advice.append(
                f"--data.batch_size {data.batch_size // 2} halves the activations (now"
                f" {data.batch_size})."
            )
        if self.strategy != "fsdp2" and found.held.splits:
            devices = self.on_each if self.devices > 1 else 2
            advice.append(
                f"--strategy fsdp2 --devices {devices} splits weights, edit and optimizer."
            )
        if (
            found.held.state > found.held.gradients
            and getattr(module, "optimizer", "") == "adam"
            and self.strategy != "fsdp2"
        ):
            advice.append(
                "--model.optimizer adam8bit quarters the optimizer's state (needs bitsandbytes)."
            )
        return advice


class Needs:
    """A forecast on so many devices: what each of them holds.

    Args:
        found: The forecast, of one device.
        devices: How many.
        strategy: One of `STRATEGIES`, or ``one device``.
    """

    def __init__(self, found: FitForecast, devices: int, strategy: str) -> None:
        share = devices if strategy == "fsdp2" else 1
        own = share if found.held.splits else 1
        self.devices, self.strategy = devices, strategy
        weights = found.held.weights
        held = {
            "frozen weights": weights.frozen - weights.divisible + weights.divisible // share,
            "the original's own copies": weights.teacher // own,
            "what is edited": weights.edit // own,
            "bank": found.held.bank,
            "copies between devices": (
                weights.unit if share > 1 else found.held.gradients if devices > 1 else 0
            ),
        }
        trained = {
            "its gradients": found.held.gradients // own,
            "its optimizer": found.held.state // own,
        }
        self.rows = held | trained
        fixed = weights.frozen + weights.teacher + weights.edit + found.held.bank
        more = sum(held.values()) - fixed
        late = more + sum(trained.values()) - found.held.gradients - found.held.state
        early = ("preparing", "sampling")
        self.whens = {
            name: peak + (more if name in early else late)
            for name, peak in found.peaks.items()
            if peak
        }
        self.when = max(self.whens, key=lambda name: self.whens[name])
        self.peak = self.whens[self.when]
        self.activations = max(
            found.peaks["step"] - fixed - found.held.gradients - found.held.state, 0
        )

    def plain(self) -> dict[str, Any]:
        """As JSON says it."""
        rows = {"devices": self.devices, "strategy": self.strategy, "per_device": self.rows}
        return rows | {"activations": self.activations, "peak_when": self.when, "peaks_per_device": self.whens,
                       "peak": self.peak}  # fmt: skip


WHEN = {
    "preparing": "before the first step",
    "sampling": "while latents or pictures to train on are drawn",
    "step": "in a step",
    "measuring": "while the edit is measured",
}


def _table(found: FitForecast, needs: Needs, method: str) -> Table:
    where = f"{needs.devices} devices, {needs.strategy}" if needs.devices > 1 else needs.strategy
    table = Table("on each device", "GiB", title=f"{method}, planned for {where}")
    for name, size in needs.rows.items():
        if size or name not in ("bank", "copies between devices"):
            table.add_row(name, _gib(size))
    table.add_row("activations and temporaries", _gib(needs.activations), end_section=True)
    for name, size in needs.whens.items():
        table.add_row(
            f"most {WHEN[name]}", _gib(size), style="bold" if name == needs.when else None
        )
    return table


def _gib(size: int) -> str:
    return f"{size / GIB:.3f}" if size < GIB else f"{size / GIB:.2f}"


def _counted(found: FitForecast, devices: int) -> list[str]:
    held, first, last = found.held, found.asked["first"], found.asked["last"]
    parts = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in held.parameters.items())
    total = sum(held.parameters.values())
    inside = sorted({".".join(name.split(".")[:2]) for name in held.names})
    shown = ", ".join(inside[:4]) + (", ..." if len(inside) > 4 else "")
    trained = (
        f"{held.trained / 1e6:.3f} M ({held.trained / total:.2%}) in {len(held.names)} tensors of"
        f" {shown}"
    )
    steps = [f"Each of {found.steps} steps asks the student {last[STUDENT_CALLS]} times and the original {last[TEACHER_CALLS]} "
             f"times about a latent; {last['backwards']} backwards."]  # fmt: skip
    if first != last:
        steps.append(
            f"(The first asks {first[STUDENT_CALLS]} and {first[TEACHER_CALLS]}; {first['backwards']}"
            " backwards.)"
        )
    if found.sampled:
        steps.append(f"Trajectories or pictures to train on cost {found.sampled} evaluations.")
    calls = last[STUDENT_CALLS] + last[TEACHER_CALLS]
    whole = found.steps * calls + found.sampled
    each, together = (" on each device", ", on all devices together") if devices > 1 else ("", "")
    drawn = (
        f"The measurement draws 2 x {found.pictures} pictures in {found.measured}"
        f" evaluations{together}."
    )
    return [
        f"Parameters: {parts}.",
        f"Trained: {trained}." if held.trained else "Trained: nothing; the edit is solved for.",
        *(steps if held.trained else []),
        f"In all about {whole} evaluations{each}.{' ' + drawn if found.pictures else ''}",
    ]
