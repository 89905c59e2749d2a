"""LightningCLI's parser with short names, and with errors in one line."""

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, set_dumper, set_loader
from jsonargparse.typing import Path_fr, register_type
from lightning.pytorch.cli import LightningArgumentParser

from erasure_lightning.api.configs import dump_yaml, read_config
from erasure_lightning.cli.concept_options import concept_list
from erasure_lightning.cli.error_messages import one_line_error
from erasure_lightning.cli.short_names import load_names
from erasure_lightning.concepts.concept import Concepts
from erasure_lightning.errors import ErasureError

MODE = "erasure"

set_loader(MODE, load_names, exceptions=(yaml.YAMLError,))
set_dumper(MODE, dump_yaml)


def _read(value: Any) -> Concepts:
    """Concepts of a value on the command line or in a config.

    Raises:
        TypeError: If it is something else.
    """
    concepts = value.get("concepts") if isinstance(value, dict) else value
    concepts = concept_list(concepts) if isinstance(concepts, list) else concepts
    if not isinstance(concepts, Concepts):
        raise TypeError("Expected concepts")
    return concepts


register_type(
    Concepts,
    serializer=lambda concepts: [asdict(concept) for concept in concepts.listed],
    deserializer=_read,
    deserializer_exceptions=(TypeError,),
    type_check=isinstance,
)


class Parser(LightningArgumentParser):
    """A parser that expands short names, and raises errors of one line.

    Args:
        args: Arguments of jsonargparse's parser.
        kwargs: Arguments of jsonargparse's parser.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"parser_mode": MODE, "allow_abbrev": False}
        super().__init__(*args, **kwargs)

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config; files that it names are found from its folder, as jsonargparse has it.

        Args:
            path: The config.
            args: Arguments of ``parse_string``.
            kwargs: Arguments of ``parse_string``.

        Raises:
            ErasureError: If it is no config, with the line, one of an attack, or one with parts.
        """
        content = read_config(Path(path))
        if "attack" in content:
            raise ErasureError(
                f"{path} configures an attack: give it to `erasure attack --config`."
            )
        if "parts" in content:
            raise ErasureError(
                f"{path} has parts, which erasure fit alone reads. Its run's folder, and those of"
                " the parts in it, are runs like any other."
            )
        text = Path(path).read_text(encoding="utf-8")
        with Path_fr(path).relative_path_context():
            config: Namespace = self.parse_string(text, *args, **kwargs)
        return config

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an error in one line, with suggestions.

        Raises:
            ErasureError: Always.
        """
        if not self.exit_on_error:  # of one value inside another parser's, which adds its key
            super().error(message, ex)
        raise ErasureError(one_line_error(message, self)) from ex


def check_names(names: Iterable[str], parser: LightningArgumentParser) -> None:
    """Refuse options that belong to no argument and no group of arguments.

    Args:
        names: With their dashes.
        parser: The command's.

    Raises:
        ErasureError: If there is one, with the names most like it.
    """
    known = {option.partition(".")[0] for option in parser._option_string_actions}
    for name in names:
        if name and name.partition(".")[0].removesuffix("+") not in known:
            raise ErasureError(one_line_error(f"unrecognized arguments: {name}", parser))
