"""The folder that a command writes into."""

import os
import sys
from pathlib import Path

from jsonargparse import Namespace

from erasure_lightning.cli.rank import is_first_process
from erasure_lightning.runs.folder import Run, default_run, require_unused, run_of, unused_folder

#: Environment variable that passes the folder to processes that Lightning starts.
_VARIABLE = "ERASURE_RUN_DIR"


def choose(command: str, config: Namespace, checkpoint: Path | None) -> Run:
    """The folder of a command.

    Processes that Lightning starts read it from their environment. Those that torchrun or a
    scheduler starts choose and check it each: only a config is written there before they have met.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        config: The parsed options.
        checkpoint: Which is resumed or used.

    Raises:
        ErasureError: If a file would be overwritten.
    """
    if (
        "LOCAL_RANK" in os.environ
        and "TORCHELASTIC_RUN_ID" not in os.environ
        and _VARIABLE in os.environ
    ):
        return Run(Path(os.environ[_VARIABLE]))
    run = _folder(command, config, checkpoint)
    check_run_folder(command, run, checkpoint)
    _warn_of_unfinished_run(command, config, checkpoint)
    if "LOCAL_RANK" not in os.environ:
        os.environ[_VARIABLE] = str(run.root)
    return run


def unset_folder() -> None:
    """Hide the folder from processes that are started after the command."""
    os.environ.pop(_VARIABLE, None)


def check_run_folder(command: str, run: Run, checkpoint: Path | None) -> None:
    """Raise if a command would overwrite files of another in the folder.

    Args:
        command: As in `choose`.
        run: The folder.
        checkpoint: As in `choose`.

    Raises:
        ErasureError: If so.
    """
    if command == "fit" and checkpoint is not None and run == run_of(checkpoint):
        run.check_resumable()
    elif command == "fit":
        run.check_unused()
    else:
        require_unused(run.root)


def _warn_of_unfinished_run(command: str, config: Namespace, checkpoint: Path | None) -> None:
    """Warn where a run without an edit is named; its last.ckpt may be named on purpose."""
    if (
        command == "fit"
        or checkpoint is None
        or checkpoint == Path(config.ckpt_path)
        or not is_first_process()
    ):
        return
    run = run_of(checkpoint)
    if checkpoint == run.last:
        message = f"{run.root} holds an unfinished run, whose last checkpoint is used"
        print(f"erasure: warning: {message}; go on with `{run.command}`.", file=sys.stderr)


def _folder(command: str, config: Namespace, checkpoint: Path | None) -> Run:
    if config.run_dir is not None:
        return Run(Path(config.run_dir))
    if command == "fit" and checkpoint is None:
        concepts = config.model.init_args.concepts
        names = [concept.name for concept in concepts.listed]
        run = default_run(
            config.model.class_path.rsplit(".", 1)[-1],
            [concepts.file.stem] if concepts.file else names,
        )
        # Runs of a sweep share a parent folder.
        sweep_run = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
        return Run(run.root.with_name(f"{run.root.name}-{sweep_run}")) if sweep_run else run
    assert checkpoint is not None  # the other commands need one
    root = run_of(checkpoint).root
    return Run(root) if command == "fit" else Run(unused_folder(root / command))
