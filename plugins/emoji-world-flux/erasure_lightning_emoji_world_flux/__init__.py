"""The emoji world as FLUX: the files that it does not share with the emoji world."""

from pathlib import Path

__all__ = ["ROOT"]

#: Folder of the world: ``pipeline/``, ``labels.json``, ``NOTICES.md``, ``RECIPE.md``.
ROOT: Path = Path(__file__).resolve().parent
