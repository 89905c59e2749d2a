"""``erasure compose``: several edits of one model as one, with a report of shared tensors."""

from pathlib import Path

from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word


def run_compose(argv: list[str]) -> None:
    """Compose edits, write the composition and print the report.

    Raises:
        ErasureError: If an edit cannot be read or composed, or a file would be overwritten.
    """
    options = _parser().parse(argv)
    from erasure_lightning.api.compose import compose, save_composition
    from erasure_lightning.api.quiet import silence
    from erasure_lightning.runs.folder import Run, require_unused

    silence()
    if configs := [path for path in options.runs if path.suffix in (".yaml", ".yml")]:
        raise ErasureError(
            f"erasure compose adds finished runs; found the config {configs[0]}. A config with"
            " `parts:` lists configs, and erasure fit --config FILE fits and adds them."
        )
    out: Path = options.out
    if out.suffix == ".safetensors":
        if out.exists():
            raise ErasureError(f"{out} exists already, and is not overwritten. Choose another.")
    elif out.is_file():
        raise ErasureError(f"--out needs a folder or a .safetensors file; found the file {out}.")
    else:
        require_unused(out, "--out")
    edit = compose(*options.runs, backbone=options.backbone)
    path = save_composition(edit, out if out.suffix == ".safetensors" else Run(out).edit)
    print(edit.report())
    print(f"Composed; the edit is {path}. Measure it: erasure test --ckpt_path {shell_word(out)}.")


def _parser() -> Arguments:
    parser = Arguments(
        "compose",
        "Add the differences of several edits of one model into one edit, without training, and"
        " list tensors that two of them change. Edits of adapters that act by prompt or image"
        " cannot be added.",
    )
    parser.add_run(several=True)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="A new folder, or a .safetensors file; existing files are not overwritten.",
    )
    parser.add_backbone()
    return parser
