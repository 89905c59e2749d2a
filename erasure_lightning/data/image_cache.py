"""A cache on disk of the original model's images, which later runs reuse."""

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
    batch: ImageBatch,
    generate: Callable[[], Tensor],
    any_rank: Callable[[bool], bool] = lambda missing: missing,
) -> Tensor:
    """A batch of images ``(B, 3, H, W)`` from the cache; generated and stored if not there.

    Args:
        folder: Folder of the cache; None for no cache.
        model: Fingerprint of the model and of its sampler, and the precision it computes in.
        batch: The requested images. They are cached as a batch, since the last bits of an image
            depend on the rest of its batch.
        generate: Generates the images.
        any_rank: Whether a flag is set on any rank, for ranks that must generate together
            (`Backbone.any_rank`).
    """
    if folder is None:
        return generate()
    requests = [(r.prompt, r.seed, r.steps, r.guidance) for r in batch.requests]
    name = hashlib.sha256(repr((model, batch.size, requests)).encode()).hexdigest()[:32]
    path = Path(folder, f"{name}.safetensors")
    cached = _read(path)
    if not any_rank(cached is None):
        return cast(Tensor, cached)
    images = generate()
    write_atomically(path, save({"images": images.detach().cpu().contiguous()}))
    return images


def _read(path: Path) -> Tensor | None:
    try:
        (images,) = load_file(path).values()
        return images
    except (FileNotFoundError, SafetensorError):  # not generated yet, or damaged
        return None
