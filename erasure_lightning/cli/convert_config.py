"""``erasure convert-config``: converts a config of LECO or of ai-toolkit's sliders."""

from pathlib import Path

from erasure_lightning.api.convert_config import convert_config
from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word
from erasure_lightning.files.writing import write_atomically


def run_convert_config(argv: list[str]) -> None:
    """Print the config, or write it.

    Raises:
        ErasureError: If it cannot be converted, or the output exists.
    """
    options = _parser().parse(argv)
    text = convert_config(options.file)
    if options.out is None:
        print(text, end="")
        return
    if options.out.exists():
        raise ErasureError(f"{options.out} exists already, and is not overwritten. Choose another.")
    write_atomically(options.out, text.encode())
    print(f"Written: {options.out}. Erase with `erasure fit --config {shell_word(options.out)}`.")


def _parser() -> Arguments:
    parser = Arguments(
        "convert-config",
        "Turn LECO's config, or an ai-toolkit job of type slider, into a config for ESD with"
        " adapters; comments list the differences.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="The YAML file.")
    parser.add_options(Path, out="A new file; by default the config is printed.")
    return parser
