"""Pictures of a model that does not change, drawn once and kept for every later run that asks for
the same.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from erasure_lightning.data.image_plan import ImageBatch
from erasure_lightning.files.writing import write_atomically


def cached_images(
    folder: str | None,
    model: str,
    shots: ImageBatch,
    draw: Callable[[], Tensor],
    any_rank: Callable[[bool], bool] = lambda missing: missing,
) -> Tensor:
    """A batch of pictures ``(B, 3, H, W)``, from the folder where they lie there; bit for bit what
    was drawn.

    Args:
        folder: Where they are kept, ``None`` to draw them anew.
        model: Fingerprint of the model and of its sampler.
        shots: What the pictures are of. A batch is kept as one, since a picture's last bits depend
            on its neighbours.
        draw: Draws them.
        any_rank: Whether any rank lacks its batch, for ranks that can only draw together
            (`Backbone.any_rank`).
    """
    if folder is None:
        return draw()
    asked = [(s.prompt, s.seed, s.steps, s.guidance) for s in shots.shots]
    name = hashlib.sha256(repr((model, shots.size, asked)).encode()).hexdigest()[:32]
    path = Path(folder, f"{name}.safetensors")
    found = _read(path)
    if not any_rank(found is None):
        return cast(Tensor, found)
    pictures = draw()
    write_atomically(path, save({"pictures": pictures.detach().cpu().contiguous()}))
    return pictures


def _read(path: Path) -> Tensor | None:
    try:
        return load_file(path)["pictures"]
    except (
        FileNotFoundError,
        SafetensorError,
    ):  # not drawn yet, or spoiled by something that is not us
        return None
