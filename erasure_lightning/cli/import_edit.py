"""``erasure import``: a file of official code as an edit that every command reads."""

from pathlib import Path

from erasure_lightning.cli.arguments import Arguments, word_list
from erasure_lightning.files.words import shell_word

#: `OFFICIAL_LAYOUTS`, without importing torch.
_LAYOUTS = ("esd", "uce", "speed", "mace", "spm", "leco", "diffusers-lora")


def run_import(argv: list[str]) -> None:
    """Import a file and print the report of its edit.

    Raises:
        ErasureError: If the file is of another layout or model, or the output exists.
    """
    options = _parser().parse(argv)
    from erasure_lightning.api.import_edit import import_edit
    from erasure_lightning.api.quiet import silence
    from erasure_lightning.concepts.files import read_concepts

    silence()
    listed = Path(options.concepts).suffix and Path(options.concepts).is_file()
    concepts = read_concepts(Path(options.concepts)) if listed else word_list(options.concepts)
    edit = import_edit(options.file, options.layout, options.backbone, options.out, concepts)
    print(edit.report())
    print(f"Imported; measure it with `erasure test --ckpt_path {shell_word(options.out)}`.")


def _parser() -> Arguments:
    parser = Arguments(
        "import",
        "Convert a file of a method's official code into an edit that test, attack, report, export"
        " and apply_edit read. docs/import.md lists the layouts.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="A safetensors file; for MACE a pipeline's folder."
    )
    parser.add_argument(
        "--as", dest="layout", required=True, choices=_LAYOUTS, help="Layout of the file."
    )
    parser.add_argument(
        "--backbone", required=True, help="The original model: a folder, a FILE or a Hub id."
    )
    parser.add_argument(
        "--out", required=True, help="A file that ends in .safetensors, or a new run's folder."
    )
    parser.add_argument(
        "--concepts",
        default="",
        metavar="NAMES",
        help="The erased concepts: words, A,B, or a file of concepts; by default those that the"
        " file names.",
    )
    return parser
