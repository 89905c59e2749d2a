"""Where to and how an edit is exported, checked before anything is read or written."""

from dataclasses import dataclass
from pathlib import Path

import torch

from erasure_lightning.checks import require
from erasure_lightning.edits.export_format import ExportFormat, PluginFormat, find_format
from erasure_lightning.errors import ErasureError

#: Precisions of exported tensors.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

#: Layouts of exported components: a folder of diffusers each, or a file with the authors' names.
_LAYOUTS = ("diffusers", "original")

#: Formats of differences, whose precision can be chosen.
_DIFFERENCES = (ExportFormat.LORA, ExportFormat.KOHYA_LORA, ExportFormat.DIFF)


@dataclass(frozen=True)
class ExportRequest:
    """Where to and how an edit is exported; raises for what no edit can be exported by.

    Args:
        path: The new file, or the new folder for ``diffusers`` and ``component``.
        format: One of `export_formats`.
        checkpoint: The user's single file, for the format ``checkpoint``.
        rank: Rank of low-rank factors of a full-rank change, at least 1.
        energy: Share of each layer's squared change that they retain, above 0 and at most 1; 0.999
            where neither it nor ``rank`` is given.
        dtype: Precision of differences: ``float32``, ``float16`` or ``bfloat16``.
        layout: Layout of ``component``: ``diffusers``, or ``original`` for a file of each
            component with the names of the model's authors.
        images: Images of the concept that are generated with the edit and with its low-rank
            factors, for `Export.image_error`.

    Raises:
        ErasureError: If the format, the precision or the layout is unknown, the ending is another
            tool's, or something exists at the path.
    """

    path: Path
    format: str
    checkpoint: str | Path | None = None
    rank: int | None = None
    energy: float | None = None
    dtype: str = "float32"
    layout: str = "diffusers"
    images: int = 0

    def __post_init__(self) -> None:
        kind = self.kind
        if self.path.exists():
            raise ErasureError(f"The export needs a new path; {self.path} exists. Give another.")
        if kind.suffix and not self.path.name.endswith(kind.suffix):
            raise ErasureError(
                f"A file of the format {kind} needs a name that ends in {kind.suffix}, by which"
                f" other tools know it; found {self.path.name!r}."
            )
        if self.dtype not in DTYPES:
            raise ErasureError(f"dtype needs one of {', '.join(DTYPES)}; found {self.dtype!r}.")
        has_precision = kind in _DIFFERENCES or isinstance(kind, PluginFormat)
        if self.dtype != "float32" and not has_precision:
            raise ErasureError(
                f"dtype is for {', '.join(_DIFFERENCES)}; {kind} has the precision of its model."
            )
        if self.layout not in _LAYOUTS:
            raise ErasureError(f"layout needs one of {', '.join(_LAYOUTS)}; found {self.layout!r}.")
        if self.layout != "diffusers" and kind is not ExportFormat.COMPONENT:
            raise ErasureError(f"layout is for component; {kind} has one layout.")
        for name in ("rank", "images"):
            if not isinstance(getattr(self, name), int | None):
                raise ErasureError(
                    f"An export needs a whole number as {name}; found {getattr(self, name)!r}."
                )
        require("An export", at_least=0, images=self.images)
        self._check_factors()
        if kind is ExportFormat.CHECKPOINT and self.checkpoint is None:
            raise ErasureError(
                "The format checkpoint needs the single file that the edit is written into:"
                " --checkpoint FILE."
            )

    def _check_factors(self) -> None:
        """Raises if what low-rank factors alone have is requested of another format."""
        if self.kind not in (ExportFormat.LORA, ExportFormat.KOHYA_LORA):
            if self.images:
                raise ErasureError(
                    f"images compares low-rank factors with the edit; {self.kind} has none."
                )
            if (self.rank, self.energy) != (None, None):
                raise ErasureError(
                    f"rank and energy are of low-rank factors; {self.kind} has none. Leave them"
                    " out, or export it as `lora`."
                )
        if self.rank is not None and self.energy is not None:
            raise ErasureError(
                f"A LoRA needs a rank or an energy; found both, {self.rank} and {self.energy:g}."
                " Leave one out."
            )

    @property
    def kind(self) -> ExportFormat | PluginFormat:
        """The format.

        Raises:
            ErasureError: If there is none of that name, or it cannot be loaded.
        """
        return find_format(self.format)
