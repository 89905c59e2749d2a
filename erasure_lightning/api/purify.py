"""Purification of images: inverted with the original model, generated again with the edited one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from erasure_lightning.api.accelerator import default_device
from erasure_lightning.api.load import load_edited
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import shortened_names
from erasure_lightning.concepts.vocabulary import evenly_spaced
from erasure_lightning.data.datamodule import warn_of_cut
from erasure_lightning.data.image_files import image_files, read_resized
from erasure_lightning.data.image_grid import GridRow, draw_grid, png_bytes, to_pil
from erasure_lightning.diffusion.inversion import purify_images
from erasure_lightning.diffusion.sampling import image_size
from erasure_lightning.files.words import unique_names
from erasure_lightning.files.writing import write_atomically, write_json
from erasure_lightning.metrics.drift import Drift, drifts
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.runs.folder import new_folder, run_of
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.checkpoints import locate_checkpoint

#: The sheet of all images, without its suffix.
SHEET_NAME = "sheet"

#: Steps of either direction for a model of no world.
DEFAULT_STEPS = 50

#: Images inverted at once.
_BATCH_SIZE = 8

#: Most rows of the sheet, for it to be legible.
_MAX_ROWS = 24


class PurifiedFiles(NamedTuple):
    """The outcome of `purify_files`.

    Args:
        folder: Holds ``NAME.png`` of each image, the sheet and ``purify.json``.
        drifts: Change of each image, by its name.
    """

    folder: Path
    drifts: dict[str, Drift]


class _Settings(NamedTuple):
    prompt: str
    steps: int
    guidance: float


class _Purification(NamedTuple):
    """One image before, without and with the edit, ``(3, H, W)`` in 0..1 each."""

    name: str
    image: Tensor
    reconstructed: Tensor
    purified: Tensor
    drift: Drift


def purify_files(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    prompt: str,
    run_dir: Path | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
    backbone: str | None = None,
) -> PurifiedFiles:
    """Generate image files again with an edited model, from the noise that DDIM inversion finds.

    An image is written as soon as it is generated, so that a killed run loses no finished image.

    Args:
        checkpoint: A run's folder, its ``edit.safetensors`` or a ``.ckpt``.
        images: PNG or JPEG files, or folders of them; each is cropped to its central square and
            resized to the model's own size.
        prompt: Text that describes the images; the edit acts on the concepts in it.
        run_dir: A new or empty folder to write into; ``RUN/purify`` by default.
        steps: Steps of either direction, at least 1; the world's by default, else `DEFAULT_STEPS`.
        guidance: Scale of classifier-free guidance, at least 0; 1 changes least.
        backbone: Where the base model is now; by default as the edit names it.

    Raises:
        ErasureError: If an image or the edit cannot be read, a number is out of range, or a file
            would be overwritten.
    """
    require("Purification", at_least=0, guidance=guidance)
    require("Purification", at_least=1, steps=steps)
    files = image_files([str(path) for path in images])
    path = locate_checkpoint(str(checkpoint), "purify")
    folder = new_folder(run_dir, run_of(path).root / "purify")
    module = load_edited(path, backbone).to(default_device())
    settings = _Settings(prompt, _steps(steps, module.unedited), guidance)
    warn_of_cut(module.unedited, [prompt], "prompts")
    results = []
    for result in _purifications(module, files, settings):
        write_atomically(folder / f"{result.name}.png", png_bytes(to_pil(result.purified)))
        results.append(result)
    write_atomically(folder / f"{SHEET_NAME}.png", png_bytes(_sheet(module, results, settings)))
    records = {result.name: result.drift._asdict() for result in results}
    content = {"edit": str(path)} | settings._asdict() | {"images": records}
    write_json(folder / "purify.json", content)
    return PurifiedFiles(folder, {result.name: result.drift for result in results})


def _steps(steps: int | None, backbone: Backbone) -> int:
    steps = steps or (backbone.world.steps if backbone.world else DEFAULT_STEPS)
    backbone.sampler(steps)  # refuses more steps than the model has times, before images are read
    return steps


def _purifications(
    module: ErasureModule, files: Sequence[Path], settings: _Settings
) -> Iterator[_Purification]:
    original = module.unedited
    height, width = image_size(original)
    scorer = Scorer.load(original.world.scorer).to(original.device) if original.world else None
    stems = unique_names((file.stem for file in files), {SHEET_NAME})
    for i in range(0, len(files), _BATCH_SIZE):
        batch = files[i : i + _BATCH_SIZE]
        inputs = torch.stack([read_resized(file, height, width) for file in batch]).to(
            original.device
        )
        purified = purify_images(
            original,
            module.backbone,
            inputs,
            [settings.prompt] * len(inputs),
            steps=settings.steps,
            guidance=settings.guidance,
        )
        drift = drifts(inputs, *purified, scorer)
        tensors = (inputs.cpu(), *(images.cpu() for images in purified))
        yield from map(_Purification, stems[i : i + _BATCH_SIZE], *tensors, drift)


def _sheet(module: ErasureModule, results: Sequence[_Purification], settings: _Settings) -> Image:
    names = shortened_names([concept.name for concept in module.concepts])
    title = f"Purified of {names} by {type(module).__name__}"
    subtitle = (
        f"{settings.steps} steps, guidance {settings.guidance:g}; noise found with the original"
        " model"
    )
    heading = f"prompt: {settings.prompt}" if settings.prompt else "the empty prompt"
    rows = [
        GridRow(
            heading, one.name, [to_pil(one.image), to_pil(one.reconstructed), to_pil(one.purified)]
        )
        for one in evenly_spaced(results, _MAX_ROWS)
    ]
    return draw_grid(title, subtitle, ["input", "original model", "edited model"], rows)
