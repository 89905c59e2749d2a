"""``erasure export``: an edit in the form that another tool loads."""

from pathlib import Path

from erasure_lightning.api.quiet import silence
from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.edits.export_format import export_formats

#: Share of a change from which another format is named.
_LOSS = 0.01


def run_export(argv: list[str]) -> None:
    """Write the file or folder, and print what a low-rank format loses.

    Raises:
        ErasureError: If the edit cannot be read or the format cannot hold it, or something exists
            at the path.
    """
    options = _parser().parse(argv)
    silence()
    from erasure_lightning.api.export import export_edit
    from erasure_lightning.backbones.loading import load_backbone

    pipeline = load_backbone(options.backbone).to_pipeline() if options.backbone else None
    exported = export_edit(
        options.run,
        options.out,
        options.to,
        pipeline=pipeline,
        checkpoint=options.checkpoint,
        rank=options.rank,
        energy=options.energy,
        dtype=options.dtype,
        layout=options.layout,
        images=options.images,
    )
    if exported.ranks:
        print(
            f"Ranks {exported.ranks[0]} to {exported.ranks[1]}; {exported.error:.2%} of the change"
            f" is lost{', with what the format cannot hold' * bool(exported.left_out)}."
            f"{' The formats diff and component lose none.' * (exported.error > _LOSS)}"
        )
    if exported.image_error is not None:
        print(f"Images differ by {exported.image_error:.4f} of 0..1 on average from the edit's.")
    print(f"Exported as {exported.format}: {exported.path}.")


def _parser() -> Arguments:
    parser = Arguments(
        "export",
        "Write an edit in the form that diffusers, ComfyUI, A1111 or Forge load; docs/export.md"
        " says which tool reads which.",
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="A run's folder, or its edit.safetensors."
    )
    parser.add_argument(
        "--to", required=True, metavar="NAME", help=f"{', '.join(export_formats())}."
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="A new file; a new folder for diffusers and component.",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="Your single file, into a copy of which the edit is written (--to checkpoint).",
    )
    parser.add_argument("--rank", type=int, help="Of low-rank factors of a full-rank change.")
    parser.add_argument(
        "--energy",
        type=float,
        help="Share of each layer's squared change that low-rank factors"
        " retain; 0.999 where no rank is given.",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=0,
        metavar="N",
        help="Draw N images with the edit and with its low-rank factors, and compare them.",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        help="Of lora, kohya-lora, diff and formats of other packages: float32, float16, bfloat16.",
    )
    parser.add_argument(
        "--layout",
        default="diffusers",
        help="Of component: diffusers, a folder each; original, a file each with the authors'"
        " names, as ComfyUI reads it.",
    )
    parser.add_argument(
        "--backbone",
        help="Where the base model is now; by default as the edit names it.",
    )
    return parser
