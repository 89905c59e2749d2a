"""The parser: LightningCLI's, with short names and with errors in one line."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, set_dumper, set_loader
from jsonargparse.typing import Path_fr, register_type
from lightning.pytorch.cli import LightningArgumentParser

from erasure_lightning.cli.configs import dump_yaml, read_config
from erasure_lightning.cli.error_messages import tidy
from erasure_lightning.cli.short_names import listed, load_names
from erasure_lightning.concepts.concept import Concepts
from erasure_lightning.errors import ErasureError

MODE = "erasure"

set_loader(MODE, load_names, exceptions=(yaml.YAMLError,))
set_dumper(MODE, dump_yaml)


def _read(value: Any) -> Concepts:
    """Concepts as a command line or a config gives them.

    Raises:
        TypeError: If it gives something else.
    """
    found = value.get("concepts") if isinstance(value, dict) else value
    found = listed(found) if isinstance(found, list) else found
    if not isinstance(found, Concepts):
        raise TypeError("Expected concepts")
    return found


register_type(
    Concepts,
    serializer=lambda found: [asdict(concept) for concept in found.listed],
    deserializer=_read,
    deserializer_exceptions=(TypeError,),
    type_check=isinstance,
)


class Parser(LightningArgumentParser):
    """Reads short names, and tells a mistake in one line.

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
            ErasureError: If it is no config, with the line.
        """
        text = read_config(Path(path))
        with Path_fr(path).relative_path_context():
            config: Namespace = self.parse_string(text, *args, **kwargs)
        return config

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise it, short and with suggestions.

        Raises:
            ErasureError: Always.
        """
        if (
            not self.exit_on_error
        ):  # a parser of one value inside another, which adds where it stands
            super().error(message, ex)
        raise ErasureError(tidy(message, self)) from ex
