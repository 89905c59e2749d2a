"""Images of a folder, alone or in the pairs that ``erasure predict`` writes."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.callbacks.image_writer import MANIFEST_FILE
from erasure_lightning.data.image_files import IMAGE_SUFFIXES, image_tensor, read_image
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word
from erasure_lightning.files.writing import SAMPLES_FILE
from erasure_lightning.metrics.image_metrics import MetricBatch

#: Images scored at once.
_BATCH_SIZE = 16


class FolderImage(NamedTuple):
    """One image, or the pair of them that ``predict`` generates.

    Args:
        prompt: Its prompt; empty where it is unknown.
        seed: Seed of its noise; its number in the folder where the seed is unknown.
        files: By ``before`` and ``after``; a single image is ``after``.
        sampling: Prompt, seed, steps, guidance and size, as the manifest has them.
    """

    prompt: str
    seed: int
    files: dict[str, Path]
    sampling: tuple[str, ...]


def read_image_folder(folder: Path) -> list[FolderImage]:
    """The pairs that ``predict`` wrote into a folder, or else the images in it.

    Raises:
        ErasureError: If there is no such folder, it holds no images or a run's samples, or one is
            missing.
    """
    if not folder.is_dir():
        raise ErasureError(f"erasure score needs a folder of images; found none at {folder}.")
    if (folder / SAMPLES_FILE).is_file():
        raise ErasureError(
            "erasure score needs images of one model, or the pairs that predict writes; found a"
            f" run's samples, before and after the edit, in {folder}. Generate more of them:"
            f" erasure predict --ckpt_path {shell_word(folder.parent)} --data.prompts FILE."
        )
    if (folder / MANIFEST_FILE).is_file():
        with (folder / MANIFEST_FILE).open(newline="", encoding="utf-8") as file:
            images = [_pair(folder, row) for row in csv.DictReader(file)]
    else:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        images = [FolderImage("", i, {"after": path}, ()) for i, path in enumerate(files)]
    if not images:
        raise ErasureError(
            f"erasure score needs PNG or JPEG files, or predict's {MANIFEST_FILE}; found none in"
            f" {folder}."
        )
    missing = [path for image in images for path in image.files.values() if not path.is_file()]
    if missing:
        raise ErasureError(
            f"{folder / MANIFEST_FILE} names {missing[0].relative_to(folder)}, which is not there."
            " Generate the images again with `erasure predict`."
        )
    return _independent(images)


def _pair(folder: Path, row: dict[str, str]) -> FolderImage:
    try:
        files = {"before": folder / row["original"], "after": folder / row["edited"]}
        size = (row.get("height", ""), row.get("width", ""))  # older manifests lack them
        sampling = (row["prompt"], row["evaluation_seed"], row["steps"], row["guidance"], *size)
        return FolderImage(row["prompt"], int(row["evaluation_seed"]), files, sampling)
    except (KeyError, TypeError, ValueError) as error:
        raise ErasureError(
            f"{folder / MANIFEST_FILE} needs rows as `erasure predict` writes them; found an error"
            f" ({error}). Generate the images again."
        ) from error


def _independent(images: list[FolderImage]) -> list[FolderImage]:
    """Images with a seed of their own each, where all or all but one have the same.

    There is no interval over one seed, nor a FID of the one image that is left without it.
    """
    counts = Counter(image.seed for image in images)
    if max(counts.values()) < len(images) - 1:
        return images
    return [image._replace(seed=i) for i, image in enumerate(images)]


def image_batches(images: Sequence[FolderImage], device: torch.device) -> Iterator[MetricBatch]:
    """Batches of successive images of one size, in 0..1.

    Raises:
        ErasureError: If the two images of a pair differ in size.
    """
    waiting: list[FolderImage] = []
    tensors: list[dict[str, Tensor]] = []
    for image in images:
        pixels = {when: image_tensor(read_image(path)) for when, path in image.files.items()}
        if len({*_sizes(pixels)}) > 1:
            names = " and ".join(str(path) for path in image.files.values())
            raise ErasureError(f"The images of a pair need one size; found two, in {names}.")
        if waiting and (len(waiting) == _BATCH_SIZE or _sizes(pixels) != _sizes(tensors[0])):
            yield _batch(waiting, tensors, device)
            waiting = []
            tensors = []
        waiting.append(image)
        tensors.append(pixels)
    if waiting:
        yield _batch(waiting, tensors, device)


def _batch(
    images: Sequence[FolderImage], tensors: Sequence[dict[str, Tensor]], device: torch.device
) -> MetricBatch:
    whens = list(tensors[0])
    return MetricBatch(
        [image.prompt for image in images],
        [image.seed for image in images],
        {when: torch.stack([pixels[when] for pixels in tensors]).to(device) for when in whens},
        {when: [image.files[when] for image in images] for when in whens},
    )


def _sizes(pixels: dict[str, Tensor]) -> list[torch.Size]:
    return [tensor.shape for tensor in pixels.values()]
