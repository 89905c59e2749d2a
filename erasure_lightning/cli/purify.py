"""``erasure purify``: image files, generated again with an edited model."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from erasure_lightning.api.purify import DEFAULT_STEPS, SHEET_NAME, purify_files
from erasure_lightning.api.quiet import silence
from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.metrics.drift import Drift


def run_purify(argv: list[str]) -> None:
    """Purify images and print their changes.

    Raises:
        ErasureError: If an image or the edit cannot be read, or a file would be overwritten.
    """
    options = _parser().parse(argv)
    silence()
    folder, drifts = purify_files(**vars(options))
    Console(markup=False).print(_table(drifts))
    sheet = folder / f"{SHEET_NAME}.png"
    print(f"Purified; the images are in {folder}, side by side in {sheet}.")


def _parser() -> Arguments:
    parser = Arguments(
        "purify",
        "Invert each image to noise with the original model (DDIM inversion), and generate it from"
        " there with the edited model, which changes only what the edit affects.",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="PNG or JPEG files, or folders of them; each is cropped to its central square and"
        " resized to the model's own size.",
    )
    parser.add_argument(
        "--ckpt_path",
        dest="checkpoint",
        required=True,
        metavar="CKPT_PATH",
        help="A run, its edit.safetensors or a .ckpt.",
    )
    parser.add_argument(
        "--prompt",
        required=True,
        help="Text that describes the images; the empty prompt '' shows side effects of the edit.",
    )
    parser.add_options(
        int, steps=f"Of either direction; by default the world's, else {DEFAULT_STEPS}."
    )
    parser.add_options(float, guidance="Guidance of the generation; 1 changes images least.")
    parser.add_options(Path, run_dir="A new or empty folder; by default RUN/purify.")
    parser.add_backbone()
    parser.set_defaults(guidance=1.0)
    return parser


def _table(drifts: Mapping[str, Drift]) -> Table:
    table = Table(
        "",
        "reconstructed: PSNR",
        "purified: PSNR",
        "L1",
        "features",
        caption="reconstructed: original model against the given image; purified: edited model"
        " against reconstructed",
    )
    for name, drift in drifts.items():
        features = "" if drift.purified_features is None else f"{drift.purified_features:.3f}"
        table.add_row(
            name,
            f"{drift.reconstruction_psnr:.1f} dB",
            f"{drift.purified_psnr:.1f} dB",
            f"{drift.purified_l1:.3f}",
            features,
        )
    return table
