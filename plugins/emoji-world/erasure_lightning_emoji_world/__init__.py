"""The emoji world: a small trained Stable Diffusion stack, its scorer and its vocabulary, as plain
files.
"""

from pathlib import Path

__all__ = ["ROOT"]

#: Folder of the world: ``pipeline/``, ``scorer/``, ``labels.json``, ``NOTICES.md``, ``RECIPE.md``.
ROOT: Path = Path(__file__).resolve().parent
