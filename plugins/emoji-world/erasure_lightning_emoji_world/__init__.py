"""The emoji world: files of a small trained Stable Diffusion, its scorer and its vocabulary."""

from pathlib import Path

__all__ = ["ROOT"]

#: Folder of the world: ``pipeline/``, ``scorer/``, ``labels.json``, ``NOTICES.md``, ``RECIPE.md``.
ROOT: Path = Path(__file__).resolve().parent
