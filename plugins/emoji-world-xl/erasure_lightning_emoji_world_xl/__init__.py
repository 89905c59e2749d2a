"""The emoji world in the SDXL family: what it does not share with the emoji world, as plain files."""

from pathlib import Path

__all__ = ["ROOT"]

#: Folder of the world: ``pipeline/``, ``labels.json``, ``NOTICES.md``, ``RECIPE.md``.
ROOT: Path = Path(__file__).resolve().parent
