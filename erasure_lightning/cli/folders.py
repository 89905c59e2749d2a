"""Which folder a command writes into."""

import os
import sys
from pathlib import Path

from jsonargparse import Namespace

from erasure_lightning.cli.rank import first
from erasure_lightning.errors import ErasureError
from erasure_lightning.runs.folder import Run, default_run, run_of, unused_folder

#: Where the launching process tells the processes it starts.
_VARIABLE = "ERASURE_RUN_DIR"


def choose(command: str, config: Namespace, checkpoint: Path | None) -> Run:
    """The folder of a command.

    Processes that Lightning starts are told it. Those that torchrun or a scheduler starts find it
    out and check it
    each: nothing but a config is written there before they have met.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        config: What was asked for.
        checkpoint: Where it goes on from.

    Raises:
        ErasureError: If something there would be overwritten.
    """
    if (
        "LOCAL_RANK" in os.environ
        and "TORCHELASTIC_RUN_ID" not in os.environ
        and _VARIABLE in os.environ
    ):
        return Run(Path(os.environ[_VARIABLE]))
    run = _folder(command, config, checkpoint)
    check(command, run, checkpoint)
    _warn_of_half_an_edit(command, config, checkpoint)
    if "LOCAL_RANK" not in os.environ:
        os.environ[_VARIABLE] = str(run.root)
    return run


def forget() -> None:
    """Leave what is started after the command to itself."""
    os.environ.pop(_VARIABLE, None)


def check(command: str, run: Run, checkpoint: Path | None) -> None:
    """Raise if a command would overwrite what another has written into the folder.

    Raises:
        ErasureError: If so.
    """
    if command == "fit" and checkpoint is not None and run == run_of(checkpoint):
        run.check_resumable()
    elif command == "fit":
        run.check_unused()
    elif unused_folder(run.root) != run.root:
        raise ErasureError(
            f"{run.root} is not empty, and nothing is overwritten. Choose another --run_dir."
        )


def _warn_of_half_an_edit(command: str, config: Namespace, checkpoint: Path | None) -> None:
    """Say so where a run is named that has no edit yet; who names its last.ckpt means it."""
    if (
        command == "fit"
        or checkpoint is None
        or checkpoint == Path(config.ckpt_path)
        or not first()
    ):
        return
    run = run_of(checkpoint)
    if checkpoint == run.last:
        what = f"{run.root} holds an unfinished run, whose last checkpoint is used"
        print(f"erasure: warning: {what}; go on with `{run.command}`.", file=sys.stderr)


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
        draw = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
        return (
            Run(run.root.with_name(f"{run.root.name}-{draw}")) if draw else run
        )  # the draws of a sweep lie side by side
    assert checkpoint is not None  # the other commands cannot do without
    root = run_of(checkpoint).root
    return Run(root) if command == "fit" else Run(unused_folder(root / command))
