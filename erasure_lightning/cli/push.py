"""``erasure push``: a run as a folder for the Hugging Face Hub, and its upload."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

from erasure_lightning.api.quiet import silence
from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.cli.export import CHECKPOINT_HELP
from erasure_lightning.edits.export_format import find_format
from erasure_lightning.errors import ErasureError


def run_push(argv: list[str]) -> None:
    """Write the folder, or with ``--upload`` upload it as it is.

    Raises:
        ErasureError: If the run cannot be read, the folder exists, an option would have no effect,
            or the Hub refuses.
    """
    options = _parser().parse(argv)
    from erasure_lightning.report.hub_folder import require_hub_id, upload_hub_folder
    from erasure_lightning.runs.folder import run_of

    if options.private and not options.upload:
        raise ErasureError(
            "--private needs --upload, which makes the repository; found it alone. Add --upload, or"
            " leave it out."
        )
    require_hub_id(options.repository)
    folder = options.run_dir or run_of(options.run).root / "hub"
    if not (options.upload and folder.is_dir()):
        _write(options, folder)
    elif options.to or options.no_gallery:
        raise ErasureError(
            f"{folder} exists already, and is uploaded as it is, without --to and --no_gallery."
            " Leave them out, or delete the folder."
        )
    if options.upload:
        print(f"Uploaded: {upload_hub_folder(folder, options.repository, private=options.private)}")
    else:
        print(
            "Nothing was uploaded. The card names no licence: add one to README.md that the base"
            " model's allows, look at the images, and run the command again with --upload."
        )


def _write(options: Namespace, folder: Path) -> None:
    from erasure_lightning.report.hub_folder import require_new_folder, write_hub_folder

    require_new_folder(folder)  # before a model is loaded
    exports = _exports(options, folder) if options.to else {}
    with_gallery = not options.no_gallery
    notes = write_hub_folder(
        options.run, folder, options.repository, exports, with_gallery=with_gallery
    )
    for note in notes:
        print(note)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"Written: {folder} ({size / 1e6:,.1f} MB).")


def _exports(options: Namespace, folder: Path) -> dict[str, Callable[[Path], object]]:
    """What writes each format, by the name of its file or folder."""
    from erasure_lightning.api.base_model import load_base_model
    from erasure_lightning.edits.applied import load_edit
    from erasure_lightning.edits.export_request import ExportRequest
    from erasure_lightning.report.public_edit import public_metadata
    from erasure_lightning.training.checkpoints import locate_checkpoint

    files = {name: f"{name}{find_format(name).suffix}" for name in options.to}
    for name, file in files.items():  # a mistake is named before a model is loaded
        ExportRequest(folder / file, name, options.checkpoint)
    silence()
    edit = load_edit(locate_checkpoint(str(options.run), "push"))
    edit.apply(load_base_model(edit.metadata, options.backbone).to_pipeline())
    edit.metadata = public_metadata(edit.metadata)
    return {
        file: partial(edit.export, format=name, checkpoint=options.checkpoint)
        for name, file in files.items()
    }


def _parser() -> Arguments:
    parser = Arguments(
        "push",
        "Write the folder of a run for the Hugging Face Hub: the model card as README.md, the"
        " edit, exports, and images before and after. It needs no account and no network; look at"
        " it, and run the command again with --upload.",
    )
    parser.add_run("A finished run's folder.")
    parser.add_argument(
        "repository", metavar="OWNER/NAME", help="The repository on the Hub, which --upload makes."
    )
    parser.add_argument(
        "--to",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="Formats that the edit is exported to as well, such as lora and diffusers; `erasure"
        " export --help` lists them.",
    )
    parser.add_options(
        Path,
        checkpoint=CHECKPOINT_HELP,
        run_dir="The folder, which must be new; by default RUN/hub.",
    )
    parser.add_backbone()
    parser.add_flags(
        no_gallery="Leave the images out, where what was erased must not be shown.",
        upload="Upload the folder, as you may have edited it; it is written first if it is not"
        " there. Needs `hf auth login`.",
        private="Make the repository private; of --upload alone.",
    )
    return parser
