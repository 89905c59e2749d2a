"""``erasure purify``: image files, drawn again with an edited model."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from erasure_lightning.api.purify import DEFAULT_STEPS, SHEET_NAME, purify_files
from erasure_lightning.api.quiet import silence
from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.metrics.drift import Drift


def run_purify(argv: list[str]) -> None:
    """Purify images and print how far they moved.

    Raises:
        ErasureError: If an image or the edit cannot be read, or a file would be overwritten.
    """
    options = _parser().parse(argv)
    silence()
    folder, drifts = purify_files(**vars(options))
    Console().print(_table(drifts))
    sheet = folder / f"{SHEET_NAME}.png"
    print(f"Purified; the images are in {folder}, side by side in {sheet}.")


def _parser() -> Arguments:
    parser = Arguments(
        "purify",
        "Find the noise that the original model draws each image from (DDIM inversion), and draw"
        " from it with the edited model: what the edit does not touch comes back.",
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
        help="What the images show; the edit acts on what it names, and the empty prompt '' shows"
        " what it does to all else.",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help=f"Of either direction; by default the world's, else {DEFAULT_STEPS}.",
    )
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="Of drawing; 1 changes images least."
    )
    parser.add_argument(
        "--run_dir", type=Path, help="A new or empty folder; by default RUN/purify."
    )
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
