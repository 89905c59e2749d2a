"""`JsonRecord`: base of results that a command writes as JSON; imports no torch."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.earlier_names import renamed_figures
from erasure_lightning.files.writing import write_json


class JsonRecord(ABC):
    """Results with the protocol that produced them, saved as JSON."""

    #: What the file holds, as error messages name it.
    contents: ClassVar[str]
    #: The `erasure` command that writes the file.
    command: ClassVar[str]

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The content of the file; its ``protocol`` has an ``identity``."""

    @classmethod
    @abstractmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Build the record from the content of a file, whose protocol lacks its identity."""

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ErasureError: If the file does not exist, or has other content.
        """
        if not path.is_file():
            raise ErasureError(
                f"No {cls.contents} at {path}: the file does not exist. `erasure {cls.command}`"
                " writes it."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"), object_hook=renamed_figures)
            content["protocol"].pop("identity", None)
            return cls.from_json(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ErasureError(
                f"{path} needs {cls.contents} as `erasure {cls.command}` writes them; found others"
                f" ({error})."
            ) from error
