"""The command of a command line, and its exit code; imports no more than the command needs."""

import errno
import os
import re
import sys
from importlib import import_module

from erasure_lightning.cli.options import Options, with_underscores
from erasure_lightning.cli.rank import error_prefix
from erasure_lightning.errors import ErasureError

#: Errors of the operating system that the user can correct.
_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
_SYSTEM |= {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
_SYSTEM |= {errno.ENOENT}  # removed meanwhile; readers name a file that is missing

#: Those of writing alone; the others may be of reading too.
_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

#: What to do where model and batch need more memory than there is.
_MEMORY = (
    "Lower --data.batch_size, --data.image_batch_size or the size of images, or set"
    " --model.checkpointing true; `erasure plan` forecasts the peak of a fit."
)

#: Options whose value is a path.
_PATHS = ("--run_dir", "--ckpt_path", "--config", "-c", "--out")

COMMANDS = {
    "fit": "erase concepts; resume with --ckpt_path",
    "plan": "forecast the memory and the work of a fit, before it runs",
    "test": "measure an edit",
    "validate": "measure an edit on the smallest plan",
    "predict": "generate images of prompts before and after an edit",
    "calibrate": "set the bounds of a concept's neighbourhood, for RealEra",
    "import": "convert a file of a method's official code into an edit",
    "convert-config": "convert a config of LECO or of ai-toolkit's sliders",
    "purify": "generate real images again with an edited model",
    "attack": "try to restore what an edit erased",
    "export": "write an edit for diffusers, ComfyUI, A1111 or a checkpoint in one file",
    "benchmark": "run a suite of methods on a suite of concepts, and summarize the figures",
    "score": "CLIP score, FID, KID, LPIPS, NudeNet counts of finished images",
    "log": "show finished runs and attacks on Weights & Biases or TensorBoard",
    "compare": "print the figures of runs side by side",
    "compose": "add several edits of one model into one",
    "report": "write an HTML page, and a model card, of runs",
    "push": "write a run's folder for the Hugging Face Hub, or upload it (--upload)",
    "demo": "serve a local page of a run: prompt, seed, strength; original and edited images",
    "methods": "list every method and world, built in or of plugins (--verbose loads them)",
    "attacks": "list every attack, built in or of plugins (--verbose loads them)",
    "new-method": "write a working method, to be rewritten into your own",
}

#: Runs of Lightning, whose ranks meet the same mistakes.
_RUNS = {"fit", "test", "validate", "predict"}

#: Modules of commands that are not called as the command is; each holds ``run_COMMAND``.
_MODULES = {
    "plan": "light_plan",
    "import": "import_edit",
    "compare": "list_commands",
    "methods": "list_commands",
    "attacks": "list_commands",
}

USAGE = """usage: erasure COMMAND [options]

Concept erasure in text-to-image diffusion models.

{commands}

  erasure fit --config sage.yaml
  erasure fit --help

Every option can be set in a YAML config: --config FILE, or the name of a shipped one.
--version prints the version."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        0; 1 where `plan` forecasts more memory than there is; 2 for a mistake of the user; 128 +
        the signal for an interruption, 141 for a closed pipe.
    """
    argv = with_underscores(sys.argv[1:] if argv is None else argv)
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # imported later, they override `silence`
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        _check_encoding(argv)
        _check_paths(argv)
        return _dispatch(argv)
    except BrokenPipeError:  # the reader has read enough (`erasure methods | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BaseException as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich makes a SystemExit of it
            return 141
        message, code = _message(error)
        if not code:
            raise
        # Ranks of one run meet the same mistakes; of an error that one rank alone met, the first
        # may have printed what that rank sent it.
        front = error_prefix(together="".join(argv[:1]) not in COMMANDS.keys() - _RUNS)
        if front is not None and not getattr(error, "reported", False):
            print(f"{front}erasure: {' '.join(message.split())}", file=sys.stderr)
        return code


def _message(error: BaseException) -> tuple[str, int]:
    """The message and the exit code of an error; the code is 0 for one the user cannot correct."""
    if isinstance(error, ErasureError):
        return f"error: {error}", 2
    if isinstance(error, OSError) and error.errno in _SYSTEM:
        return f"error: {_system_message(error)}", 2
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted.", 130
    if _is_of_memory(error):
        size = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
        return f"error: not enough memory{f' for {size[1]} more' if size else ''}. {_MEMORY}", 2
    # An `Interrupted` has an exit code; importing its class would import Lightning.
    return str(error), getattr(error, "exit_code", 0)


def _is_of_memory(error: BaseException) -> bool:
    """Whether memory could not be allocated; torch, whose errors these are, may not be loaded."""
    is_of_device = type(error).__name__ == "OutOfMemoryError"
    return is_of_device or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def _system_message(error: OSError) -> str:
    where = error.filename or "The run's folder"
    if error.errno in _WRITING:
        return (
            f"{where} could not be written: {error.strerror}. What was there before is untouched."
        )
    return f"{where} could not be used: {error.strerror}."


def _check_encoding(argv: list[str]) -> None:
    """Refuse bytes that Python could not read as text, which no config or metadata can hold."""
    for word in argv:
        if any("\udc80" <= letter <= "\udcff" for letter in word):
            raise ErasureError(
                f"The command line needs words in UTF-8; found {word!r}. Set PYTHONUTF8=1, or"
                " rename the file."
            )


def _check_paths(argv: list[str]) -> None:
    """Refuse an empty path, which Python would take for the working folder."""
    for option in Options.read(argv):
        if option.name in _PATHS and option.value == "":
            raise ErasureError(f"{option.name} needs a path; found an empty text.")


def _dispatch(argv: list[str]) -> int:
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help", "help"):
        commands = "\n".join(f"  {name:16}{text}" for name, text in COMMANDS.items())
        print(USAGE.format(commands=commands))
    elif command == "--version":
        from importlib.metadata import version  # costs as much as the rest of --help

        print(f"erasure-lightning {version('erasure-lightning')}")
    elif command in _RUNS - {"fit"}:
        from erasure_lightning.cli.run import run

        run(command, argv[1:])
    elif command in COMMANDS:
        name = command.replace("-", "_")
        module = import_module(f"erasure_lightning.cli.{_MODULES.get(command, name)}")
        return getattr(module, f"run_{name}")(argv[1:]) or 0
    else:
        from erasure_lightning.files.words import did_you_mean

        hint = did_you_mean(command, COMMANDS)
        raise ErasureError(f"unknown command {command!r}.{hint} Known: {', '.join(COMMANDS)}.")
    return 0
