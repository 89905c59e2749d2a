"""Reads and writes checkpoints: atomically, and of plain values and tensors only."""

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import __version__ as lightning_version
from lightning.fabric.plugins import TorchCheckpointIO

from erasure_lightning.edits.edit import read_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.earlier_names import renamed_metadata
from erasure_lightning.files.words import shell_word
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.runs.folder import Run
from erasure_lightning.training.edit_state import BACKBONE_PREFIX

#: File name endings that ``--ckpt_path`` takes.
CHECKPOINT_SUFFIXES = (".ckpt", ".safetensors")

#: Arguments of a method that a run has for all its steps: those of the state of its optimizer, and
#: those of the trajectories, adapters and learned words in its checkpoint.
_FIXED = ("concepts", "lr", "optimizer", "weight_decay")


def locate_checkpoint(name: str, command: str) -> Path:
    """The file that ``--ckpt_path`` names for a command.

    Args:
        name: A run folder, an ``edit.safetensors``, or a ``.ckpt`` of ours.
        command: ``fit`` resumes, all others read an edit.

    Raises:
        ErasureError: If there is no such file, or none that the command can use.
    """
    path = Path(name)
    if path.is_dir():
        return _in_run(Run(path), command)
    if not path.is_file():
        raise ErasureError(f"No checkpoint at {name}: there is no such file or folder.")
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise ErasureError(
            f"{name} cannot be read: a checkpoint is a run folder, an edit.safetensors, or a .ckpt"
            " that `erasure fit` wrote. Pickles can run code: load such a file where you trust it,"
            " and write its tensors with safetensors.torch.save_file."
        )
    if command == "fit" and path.suffix == ".safetensors":
        raise ErasureError(
            f"{name} is a finished edit, without the optimizer's state that resuming needs. Resume"
            " from the run folder's checkpoints/last.ckpt, or measure the edit with `erasure"
            " test`."
        )
    return path


def _in_run(run: Run, command: str) -> Path:
    if command == "fit":
        run.check_resumable()
    candidates = (run.last,) if command == "fit" else (run.edit, run.last)
    for path in candidates:
        if path.is_file():
            return path
    if run.config.is_file():
        raise ErasureError(
            f"{run.root} holds a config and nothing that {command} could use, like a run that was"
            " stopped before its first checkpoint. Start it again with `erasure fit --config"
            f" {shell_word(run.config)} --run_dir {shell_word(run.root)}`."
        )
    missing = "checkpoints/last.ckpt"
    if command != "fit":
        missing = f"edit.safetensors and no {missing}"
    raise ErasureError(
        f"{run.root} is no run of ours that {command} could use: it holds no {missing}."
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's plain values and tensors; an edit is read as a checkpoint without optimizer.

    Raises:
        ErasureError: If it is missing, cut short, holds more than plain values, or is no checkpoint
            of ours.
    """
    if path.suffix == ".safetensors":
        return _from_edit(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ErasureError(f"No checkpoint at {path}: there is no such file.") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ErasureError(_unreadable(path, error)) from error
    if not isinstance(checkpoint, dict) or "erasure" not in checkpoint:
        raise ErasureError(
            f"{path} is no checkpoint of an erasure: it does not say what it was made from."
        )
    checkpoint["erasure"] = renamed_metadata(checkpoint["erasure"])
    return checkpoint


def check_resumption(
    path: Path, checkpoint: Mapping[str, Any], arguments: Mapping[str, Any], max_steps: int
) -> None:
    """Raise unless a run can go on from a checkpoint.

    Args:
        path: The checkpoint's file.
        checkpoint: Its content.
        arguments: Those of the method by now, as plain values.
        max_steps: Steps of the run in all, -1 for any number.

    Raises:
        ErasureError: If it would take no step, since its training would then not be ended, or if an
            argument differs that the checkpoint restores or that trajectories and adversaries in it
            were made for.
    """
    step = checkpoint["global_step"]
    if 0 <= max_steps <= step:
        raise ErasureError(
            f"{path} has taken {step} steps, and --trainer.max_steps is {max_steps}."
            " Set more steps, or use the checkpoint: `erasure test`, `predict` and `attack` read it"
            " as --ckpt_path."
        )
    before = checkpoint["erasure"].get("arguments", {})
    for name in (name for name in _FIXED if name in before and name in arguments):
        then, now = (_training_values(each[name]) for each in (before, arguments))
        if then != now:
            raise ErasureError(
                f"A run that is resumed needs its own {name}, which {path.name} holds the state of;"
                f" found {now} in place of {then}. Leave {name} as it was, or start another run."
            )


def _training_values(value: Any) -> Any:
    """What of an argument decides on a training: of concepts not their domains."""
    if isinstance(value, list):
        return [[concept.get(key) for key in ("name", "anchor", "kind")] for concept in value]
    return value


def _unreadable(path: Path, error: Exception) -> str:
    # torch's own message for such a file advises to read it all the same.
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"{path} holds more than plain values and tensors; such a pickle can run code and is"
            " not read. Load it where you trust it, and write its tensors with"
            " safetensors.torch.save_file."
        )
    return (
        f"{path} cannot be read as a checkpoint; it may be cut short."
        f" ({str(error).splitlines()[0]})"
    )


def _from_edit(path: Path) -> dict[str, Any]:
    edit = read_edit(path)
    return {
        "state_dict": {BACKBONE_PREFIX + name: value for name, value in edit.tensors.items()},
        "hyper_parameters": edit.metadata.get("arguments", {}),
        "erasure": edit.metadata,
        "pytorch-lightning_version": lightning_version,
    }


class PlainCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin for Lightning: writes atomically, reads plain values only, and edits."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint; if that fails or is interrupted, the previous one is intact."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads a checkpoint or an edit onto the CPU."""
        return read_checkpoint(Path(path))
