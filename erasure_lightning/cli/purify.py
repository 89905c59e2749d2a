"""``erasure purify``: real pictures, inverted with the original model and drawn again with the
edited one.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL.Image import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from erasure_lightning.api.load import load_edited
from erasure_lightning.api.quiet import silence
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.checks import require
from erasure_lightning.cli.arguments import Arguments, count
from erasure_lightning.concepts.concept import shortened_names
from erasure_lightning.concepts.vocabulary import evenly_spaced
from erasure_lightning.data.datamodule import warn_of_cut
from erasure_lightning.data.image_files import image_files, output_names, read_resized
from erasure_lightning.data.image_grid import GridRow, draw_grid, png_bytes, to_pil
from erasure_lightning.diffusion.inversion import purify_images as draw_again
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically, write_json
from erasure_lightning.metrics.drift import Drift, drifts
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.runs.folder import run_of, unused_folder
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.checkpoints import locate_checkpoint

#: Pictures inverted side by side; rows of the sheet at most, or nobody could read it.
BATCH, ROWS = 8, 24

#: Steps where no world says how many.
STEPS = 50

SHEET = "sheet"


class Settings(NamedTuple):
    """How pictures are purified."""

    prompt: str
    steps: int
    guidance: float


class Purification(NamedTuple):
    """One picture, ``(3, H, W)`` in 0..1 each time, and how far it moved."""

    name: str
    given: Tensor
    reconstructed: Tensor
    purified: Tensor
    drift: Drift


def purify(argv: list[str]) -> None:
    """Purify pictures and say how far they moved.

    Raises:
        ErasureError: If a picture or the edit cannot be read, or something would be overwritten.
    """
    options = _parser().parse_args(argv)
    require("erasure purify", at_least=0, **{"--guidance": options.guidance})
    files, checkpoint = image_files(options.images), locate_checkpoint(options.ckpt_path, "purify")
    folder = _folder(options.out, checkpoint)
    silence()
    module = load_edited(checkpoint).to(torch.accelerator.current_accelerator() or "cpu")
    settings = Settings(options.prompt, _steps(options.steps, module.original), options.guidance)
    warn_of_cut(module.original, [options.prompt], "prompts")
    made = []
    for one in _purifications(module, files, settings):
        write_atomically(
            folder / f"{one.name}.png", png_bytes(to_pil(one.purified))
        )  # a killed run keeps what it has drawn
        made.append(one)
    write_atomically(folder / f"{SHEET}.png", png_bytes(_sheet(module, made, settings)))
    content = (
        {"edit": str(checkpoint)}
        | settings._asdict()
        | {"pictures": {p.name: p.drift._asdict() for p in made}}
    )
    write_json(folder / "purify.json", content)
    Console().print(_table(made))
    print(f"Purified; the pictures are in {folder}, side by side in {folder / f'{SHEET}.png'}.")


def _parser() -> Arguments:
    parser = Arguments(
        "erasure purify",
        description=(
            "Find the noise that the original model draws each picture from (DDIM inversion), and"
            " draw from it with the edited model: what the edit does not touch comes back."
        ),
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="PNG or JPEG files, or folders of them; each is cropped to its "
        "central square and resized to the model's own size",
    )  # fmt: skip
    parser.add_argument(
        "--ckpt_path", required=True, metavar="RUN", help="a run, its edit.safetensors or a .ckpt"
    )
    parser.add_argument(
        "--prompt", required=True, metavar="TEXT", help="what the pictures show; the edit acts on what it names, and "
        "'' tells what it does where nothing is named",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=count, metavar="N", help=f"of each direction; the world's, else {STEPS}"
    )
    parser.add_argument(
        "--guidance", type=float, default=1.0, metavar="S", help="of drawing; 1 keeps pictures best"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a new or empty folder; RUN/purify by default"
    )
    return parser


def _steps(given: int | None, backbone: Backbone) -> int:
    steps = given or (backbone.world.steps if backbone.world else STEPS)
    backbone.sampler(steps)  # refuses more steps than the model has times, before pictures are read
    return steps


def _folder(out: Path | None, checkpoint: Path) -> Path:
    if out is None:
        return unused_folder(run_of(checkpoint).root / "purify")
    if unused_folder(out) != out:
        raise ErasureError(f"{out} is not empty, and nothing is overwritten. Choose another --out.")
    return out


def _purifications(
    module: ErasureModule, files: Sequence[Path], settings: Settings
) -> Iterator[Purification]:
    original, side = module.original, _side(module.original)
    scorer = Scorer.load(original.world.scorer).to(original.device) if original.world else None
    called = output_names(files, {SHEET})
    for i in range(0, len(files), BATCH):
        given = torch.stack([read_resized(file, side, side) for file in files[i : i + BATCH]]).to(
            original.device
        )
        prompts = [settings.prompt] * len(given)
        pictures = draw_again(
            original,
            module.backbone,
            given,
            prompts,
            steps=settings.steps,
            guidance=settings.guidance,
        )
        drift = drifts(given, *pictures, scorer)
        yield from map(
            Purification, called[i : i + BATCH], given.cpu(), *(p.cpu() for p in pictures), drift
        )


@torch.no_grad()
def _side(backbone: Backbone) -> int:
    """Height and width of the model's own pictures, in pixels."""
    return backbone.decode(torch.zeros(1, *backbone.latent_shape(), device=backbone.device)).shape[
        -1
    ]


def _sheet(module: ErasureModule, made: Sequence[Purification], settings: Settings) -> Image:
    title = f"Purified of {shortened_names([c.name for c in module.concepts])} by {type(module).__name__}"
    subtitle = (
        f"{settings.steps} steps, guidance {settings.guidance:g}; noise found with the original"
        " model"
    )
    heading = f"prompt: {settings.prompt}" if settings.prompt else "the empty prompt"
    rows = [
        GridRow(
            heading, one.name, [to_pil(one.given), to_pil(one.reconstructed), to_pil(one.purified)]
        )
        for one in evenly_spaced(made, ROWS)
    ]
    return draw_grid(title, subtitle, ["given", "original model", "edited model"], rows)


def _table(made: Sequence[Purification]) -> Table:
    table = Table("", "reconstructed: PSNR", "purified: PSNR", "L1", "features", caption=(
        "reconstructed: original model against the given picture; purified: edited model against reconstructed"
    ))  # fmt: skip
    for one in made:
        features = one.drift.purified_features
        far = "" if features is None else f"{features:.3f}"
        table.add_row(
            one.name, f"{one.drift.reconstruction_psnr:.1f} dB", f"{one.drift.purified_psnr:.1f} dB",
            f"{one.drift.purified_l1:.3f}", far,
        )  # fmt: skip
    return table
