"""The parser of the commands that take a few plain options of their own.

`fit`, `test`, `plan` and `attack` build objects out of their options, with jsonargparse. Its import
alone takes longer than all of ``erasure methods`` (0.16 s with argparse, 0.44 s with jsonargparse,
best of eleven each), so the other commands have argparse, with the errors and the help of runs.
"""

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.earlier_names import renamed_option
from erasure_lightning.files.words import did_you_mean

#: Help of ``--backbone``, the place of an edit's base model.
BACKBONE_HELP = "Where the base model is now; by default as the edit names it."

#: Names of options in other software and earlier versions, with no spelling in common with ours.
_ELSEWHERE = {
    "--out": "--run_dir",
    "--output": "--run_dir",
    "--edit": "--ckpt_path",
    "--checkpoint": "--ckpt_path",
    "--metric": "--metrics",
    "--to": "--logger",
}

#: argparse's messages about an option's value, and ours.
_PHRASES = {
    r"invalid choice: (.+) \(choose from (.+)\)": r"needs one of \2; found \1",
    r"invalid float value: (.+)": r"needs a number; found \1",
    r"invalid int value: (.+)": r"needs a whole number; found \1",
    r"expected (?:one|at least one) argument": "needs a value",
    r"not allowed with argument (.+)": r"is not allowed with \1",
    r"ignored explicit argument (.+)": r"takes no value; found \1",
}


class Arguments(argparse.ArgumentParser):
    """An argparse parser with the errors, the help and the strictness of runs.

    Args:
        command: Its name, behind ``erasure``.
        description: Text of ``--help``, a sentence or two.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"erasure {command}",
            description=description,
            formatter_class=_Help,
            add_help=False,
            allow_abbrev=False,
        )
        self.add_argument("-h", "--help", action="help", help="Show this help message and exit.")

    def add_run(
        self, help: str = "A run's folder, or its edit.safetensors.", *, several: bool = False
    ) -> None:
        """Add the run that the command reads as its first word, ``runs`` where it reads several."""
        settings: dict[str, Any] = {"nargs": "+"} if several else {}
        name = "runs" if several else "run"
        self.add_argument(name, type=Path, metavar="RUN", help=help, **settings)

    def add_backbone(self) -> None:
        """Add the place of the edit's base model."""
        self.add_options(str, backbone=BACKBONE_HELP)

    def add_options(self, kind: Callable[[str], object], **helps: str) -> None:
        """Add options of one type, without a default.

        Args:
            kind: The type, or a function from text.
            helps: Texts of ``--help`` by name.
        """
        for name, text in helps.items():
            self.add_argument(f"--{name}", type=kind, help=text)

    def add_flags(self, **helps: str) -> None:
        """Add options without a value; ``helps`` are the texts of ``--help`` by name."""
        for name, text in helps.items():
            self.add_argument(f"--{name}", action="store_true", help=text)

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """The options' values; an unknown option is an error before one that is missing.

        Raises:
            ErasureError: If the command line cannot be read.
        """
        known = self._option_string_actions
        for word in argv[: argv.index("--") if "--" in argv else None]:
            name = word.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in known:
                hint = suggestion(name, known) or "."
                raise ErasureError(f"unknown argument {name!r}{hint}")
        return self.parse_args(argv)

    def error(self, message: str) -> NoReturn:
        """Raise an error of argparse in the wording of runs.

        Raises:
            ErasureError: Always.
        """
        if missing := re.fullmatch("the following arguments are required: (.+)", message):
            raise ErasureError(f"{self.prog} needs {missing[1]} (see {self.prog} --help).")
        if unknown := re.fullmatch("unrecognized arguments: (.+)", message):
            raise ErasureError(f"unknown argument {unknown[1].split()[0]!r}.")
        text = re.sub(r"^argument (\S+):", r"\1", message)
        for pattern, phrase in _PHRASES.items():
            text = re.sub(f"{pattern}$", phrase, text)
        raise ErasureError(f"{text}.")


class _Help(argparse.HelpFormatter):
    """Adds type and default to an option's help, as jsonargparse does."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        notes = ["required"] if action.required and action.option_strings else []
        notes += [f"type: {action.type.__name__}"] if isinstance(action.type, type) else []
        if action.default not in (None, False, "", [], argparse.SUPPRESS):
            notes.append("default: %(default)s")
        return f"{action.help} ({', '.join(notes)})" if notes else action.help


def word_list(text: str) -> list[str]:
    """The words of ``A,B`` or ``[A, B]``."""
    words = text.removeprefix("[").removesuffix("]").split(",")
    return [word.strip() for word in words if word.strip()]


def suggestion(word: str, known: Iterable[str]) -> str:
    """``. Did you mean 'NAME'?``, the end of a sentence, or empty where no known name is like it.

    Args:
        word: The option, or the name, as it was typed.
        known: What could have been meant.
    """
    names = sorted(name for name in known if word.endswith("+") or not name.endswith("+"))
    ours = _ELSEWHERE.get(word) or renamed_option(word)
    hint = f" Did you mean {ours!r}?" if ours in names else did_you_mean(word, names, count=2)
    return f".{hint}" if hint else ""
