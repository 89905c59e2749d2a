"""fit, validate, test and predict: a run, from its arguments to its folder."""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from erasure_lightning.api.configs import dump_yaml, load_yaml
from erasure_lightning.api.fit import TRAINER, run_callbacks, run_loggers, running, train
from erasure_lightning.api.quiet import silence
from erasure_lightning.api.recipe import check_recipe
from erasure_lightning.callbacks.interrupt import LastCheckpoint
from erasure_lightning.callbacks.watchdog import Watchdog
from erasure_lightning.checks import require
from erasure_lightning.cli import folders, loggers, resume
from erasure_lightning.cli.error_messages import constructor_error
from erasure_lightning.cli.options import CONFIG_OPTIONS, Options
from erasure_lightning.cli.parser import Parser, check_names
from erasure_lightning.cli.rank import use_launched_ranks
from erasure_lightning.cli.short_names import full_words
from erasure_lightning.cli.warning_lines import format_warnings
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.methods import METHODS
from erasure_lightning.runs.logger_session import closing
from erasure_lightning.runs.redaction import redact_secrets
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.checkpoints import PlainCheckpointIO, locate_checkpoint
from erasure_lightning.training.strategies import check_strategy, register_strategies

#: Options of which a command needs one.
_NAMING = {*CONFIG_OPTIONS, "--model", "--model.class_path", "-h", "--help"}

HELP = {
    "fit": "Erase concepts.",
    "validate": "Measure an edit on the smallest plan.",
    "test": "Measure an edit.",
    "predict": "Generate images of prompts before and after an edit.",
    "plan": "Forecast the memory and the work of a fit, before it runs.",
}


def run(command: str, argv: list[str]) -> None:
    """Run ``erasure fit``, ``validate``, ``test`` or ``predict``.

    Args:
        command: One of `HELP`.
        argv: Its arguments.

    Raises:
        ErasureError: For errors that the user can correct.
        Interrupted: If a signal came.
    """
    silence()
    format_warnings()
    keeper = LastCheckpoint()
    try:
        with keeper.watching():
            CommandLine(command, argv, keeper).execute()
    except MisconfigurationException as error:
        raise ErasureError(str(error)) from error
    except (RuntimeError, TypeError) as error:  # Lightning has no class of its own for these
        if str(error).startswith(("Early stopping conditioned on metric", "`devices` selected")):
            raise ErasureError(str(error)) from error
        raise
    finally:
        folders.unset_folder()


class CommandLine(LightningCLI):
    """LightningCLI for one command: methods by name, run folders, and callbacks that every run has.

    Args:
        command: One of `HELP`.
        argv: Its arguments.
        keeper: Saves the run when it is interrupted.
    """

    def __init__(self, command: str, argv: list[str], keeper: LastCheckpoint) -> None:
        self.command = command
        self.options = Options.read(argv)
        self.keeper = keeper
        words = [*resume.own_config(self.options, command), *full_words(self.options)]
        super().__init__(
            ErasureModule,
            PromptData,
            save_config_callback=None,
            trainer_defaults=TRAINER,
            parser_kwargs={"prog": f"erasure {command}", "description": HELP[command]},
            parser_class=Parser,
            subclass_mode_model=True,
            args=words,
            run=False,
            auto_configure_optimizers=False,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run; its only seed is ``model.seed``."""
        text = str | None
        parser.add_argument(
            "--run_dir", type=text, help="The run's folder; by default runs/METHOD-CONCEPTS."
        )
        parser.add_argument(
            "--ckpt_path",
            type=text,
            help="A run, its edit.safetensors or a .ckpt, to resume or to use.",
        )
        parser.add_argument(
            "--save_every", type=int, default=25, help="Steps of fit between two saves."
        )
        parser.add_argument(
            "--hang_timeout",
            type=float,
            default=1500.0,
            help="Seconds without a batch after which ranks are ended.",
        )
        parser.add_argument(
            "--measure", type=bool, default=True, help="Whether fit measures its edit at the end."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments; LightningCLI's own method warns about ``sys.argv``."""
        names = self.options.names()
        if not (args[:1] == ["--config"] or names & _NAMING or any(".help" in n for n in names)):
            check_names(names, parser)  # a misspelled --config is no missing one
            raise ErasureError(self._needs())
        self.config = parser.parse_args(args)
        check_strategy(self.config.trainer.strategy)
        for option in self.options:
            if option.name in CONFIG_OPTIONS and option.value:
                check_recipe(option.value, self.config.model.init_args.backbone)

    def _needs(self) -> str:
        """What to give to a command that has neither a method nor an edit."""
        if self.command in ("fit", "plan"):
            return (
                f"erasure {self.command} needs a method: give --config FILE, or --model NAME with"
                f" --model.concepts. Known: {', '.join(METHODS)} (`erasure methods` lists all)."
            )
        if edit := self.options.get("--ckpt_path"):
            return (
                f"erasure {self.command} needs the config of the edit, which {edit} has not: give"
                " --config FILE with its method, concepts and backbone."
            )
        return (
            f"erasure {self.command} needs an edit: give --ckpt_path RUN, or an edit.safetensors."
        )

    def _set_seed(self) -> None:
        """Override the seeding of LightningCLI; `execute` seeds with the model's own seed."""

    def before_instantiate_classes(self) -> None:
        """Determine the run's folder and checkpoint before anything is loaded."""
        config = self.config.clone()
        config.run_dir = None
        config.ckpt_path = None
        content = load_yaml(self.parser.dump(config, skip_unset=False, skip_validation=True))
        content.pop("config", None)
        content["trainer"]["logger"] = redact_secrets(content["trainer"]["logger"])
        self.text = dump_yaml(content)
        self.config_dump = content  # else LightningCLI dumps it again, for the hyperparameters
        self.keeper.set_every(self.config.save_every)
        _check_numbers(self.config.trainer)
        use_launched_ranks(self.config.trainer)
        self.watchdog = Watchdog(self.config.hang_timeout)
        self.checkpoint = self._checkpoint(content["model"])
        self.run = folders.choose(self.command, self.config, self.checkpoint)
        if self.command == "predict":
            self.config.trainer.logger = False  # its images are files; a dashboard would be empty
        loggers.set_up_loggers(self.config, self.command, self.run)

    def _checkpoint(self, model: dict[str, Any]) -> Path | None:
        if self.config.ckpt_path is None:
            if self.command != "fit":
                raise ErasureError(self._needs())
            return None
        path = locate_checkpoint(self.config.ckpt_path, self.command)
        resume.check_checkpoint(self.command, model, path, self.config.trainer.max_steps)
        return path

    def instantiate_classes(self) -> None:
        """Build model, data and trainer.

        Raises:
            ErasureError: If a constructor refuses its arguments, with its own message.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise constructor_error(error, self.parser) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the folder, loggers and callbacks of a run."""
        config = self.config_init.trainer
        chosen = config.logger if isinstance(config.logger, bool) else _list(config.logger)
        register_strategies(self.model.has_unused, self.config.hang_timeout)
        trainer = super().instantiate_trainer(
            default_root_dir=str(self.run.root),
            logger=run_loggers(self.run, chosen),
            callbacks=run_callbacks(
                _list(config.callbacks),
                self.keeper,
                self.watchdog,
                config=self.text,
                fast_dev_run=bool(config.fast_dev_run),
                checkpoints=config.enable_checkpointing is not False,
                progress_bar=config.enable_progress_bar is not False,
            ),
            plugins=[*_list(config.plugins), PlainCheckpointIO()],
            **kwargs,
        )
        self.keeper.listen_in(trainer)
        return trainer

    def execute(self) -> None:
        """Run the command."""
        torch.manual_seed(self.model.seed)
        with (
            running(self.trainer, self.run, self.watchdog, self._prepare),
            closing(self.run.root, self._open_loggers),
        ):
            {"fit": self._fit, "predict": self._predict}.get(self.command, self._measure)()

    def _prepare(self) -> None:
        folders.check_run_folder(self.command, self.run, self.checkpoint)
        write_atomically(self.run.config, self.text.encode())

    def _open_loggers(self) -> list[Logger]:
        return self.trainer.loggers if self.trainer.is_global_zero else []

    def _fit(self) -> None:
        train(self.trainer, self.model, self.datamodule, self.checkpoint, self.config.measure)
        if self.config.trainer.fast_dev_run:
            self._print("The steps ran; fast_dev_run neither writes nor measures an edit.")
            return
        self._print(f"Erased; the edit is in {self.run.root}{self._grid()}.")
        if stopped := resume.time_limit_message(self.trainer, self.run, self.model):
            self._print(stopped)
        self._print(
            "Generate images of your own prompts: erasure predict --ckpt_path"
            f" {shell_word(self.run.root)} --data.prompts PROMPTS.csv."
        )

    def _measure(self) -> None:
        measure = self.trainer.test if self.command == "test" else self.trainer.validate
        measure(self.model, datamodule=self.datamodule, ckpt_path=self.checkpoint, verbose=False)
        self._print(f"Measured; the figures are in {self.run.root}{self._grid()}.")

    def _predict(self) -> None:
        self.trainer.predict(
            self.model,
            datamodule=self.datamodule,
            ckpt_path=self.checkpoint,
            return_predictions=False,
        )
        self._print(f"Generated; the images are in {self.run.root}{self._grid()}.")

    def _grid(self) -> str:
        return f", before and after in {self.run.grid}" if self.run.grid.exists() else ""

    def _print(self, text: str) -> None:
        if self.trainer.is_global_zero:
            print(text)


def _check_numbers(trainer: Namespace) -> None:
    """Refuse numbers that Lightning would fail on, perhaps after the model has been loaded."""
    require("The trainer", at_least=0, log_every_n_steps=trainer.log_every_n_steps)
    require("The trainer", at_least=0, gradient_clip_val=trainer.gradient_clip_val)
    require(
        "The trainer",
        at_least=1,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        check_val_every_n_epoch=trainer.check_val_every_n_epoch,
    )
    if isinstance(trainer.val_check_interval, int | float):  # a text is a duration
        require("The trainer", above=0, val_check_interval=trainer.val_check_interval)


def _list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
