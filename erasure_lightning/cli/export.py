"""``erasure export``: an edit in the form that another tool loads."""

from pathlib import Path

from erasure_lightning.api.quiet import silence
from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.edits.export_format import export_formats

#: Help of ``--checkpoint``, which `erasure push` has too.
CHECKPOINT_HELP = "Your single file, into a copy of which the edit is written (--to checkpoint)."

#: Share of a change from which another format is named.
_LOSS = 0.01


def run_export(argv: list[str]) -> None:
    """Write the file or folder, and print what a low-rank format loses.

    Raises:
        ErasureError: If the edit cannot be read or the format cannot hold it, or something exists
            at the path.
    """
    options = vars(_parser().parse(argv))
    run, backbone, out, to = map(options.pop, ("run", "backbone", "out", "to"))
    silence()
    from erasure_lightning.api.base_model import load_base_model
    from erasure_lightning.api.export import export_edit
    from erasure_lightning.edits.applied import load_edit

    edit = load_edit(run)
    pipeline = load_base_model(edit.metadata, backbone).to_pipeline() if backbone else None
    exported = export_edit(edit, out, to, pipeline=pipeline, **options)
    if exported.ranks:
        least, greatest = exported.ranks
        span = f"Rank {least}" if least == greatest else f"Ranks {least} to {greatest}"
        print(
            f"{span}; {exported.error:.2%} of the change"
            f" is lost{', with what the format cannot hold' * bool(exported.left_out)}."
            f"{' The formats diff and component lose none.' * (exported.error > _LOSS)}"
        )
    if exported.image_error is not None:
        print(f"Images differ by {exported.image_error:.2g} of 0..1 on average from the edit's.")
    print(f"Exported as {exported.format}: {exported.path}.")


def _parser() -> Arguments:
    parser = Arguments(
        "export",
        "Write an edit in the form that diffusers, ComfyUI, A1111 or Forge load; docs/export.md"
        " says which tool reads which.",
    )
    parser.add_run()
    parser.add_argument(
        "--to", required=True, metavar="NAME", help=f"{', '.join(export_formats())}."
    )
    out = "A new file; a new folder for diffusers and component."
    parser.add_argument("--out", type=Path, required=True, help=out)
    parser.add_options(Path, checkpoint=CHECKPOINT_HELP)
    parser.add_options(int, rank="Of low-rank factors of a full-rank change.")
    parser.add_options(
        float,
        energy="Share of each layer's squared change that low-rank factors retain; 0.999 where no"
        " rank is given.",
    )
    images = "Generate N images with the edit and with its low-rank factors, and compare them."
    parser.add_argument("--images", type=int, default=0, metavar="N", help=images)
    parser.add_options(
        str,
        dtype="Of lora, kohya-lora, diff and formats of other packages: float32, float16,"
        " bfloat16.",
        layout="Of component: diffusers, a folder each; original, a file each with the authors'"
        " names, as ComfyUI reads it.",
    )
    parser.set_defaults(dtype="float32", layout="diffusers")
    parser.add_backbone()
    return parser
