"""``erasure fit``: of one method, or of a config with parts."""

from pathlib import Path
from tempfile import TemporaryDirectory

from erasure_lightning.api.configs import config_content
from erasure_lightning.api.quiet import silence
from erasure_lightning.cli.options import CONFIG_OPTIONS, Options


def run_fit(argv: list[str]) -> None:
    """Run ``erasure fit``.

    Args:
        argv: Its arguments.

    Raises:
        ErasureError: For errors that the user can correct.
        Interrupted: If a signal came.
    """
    silence()
    options = Options.read(argv)
    if file := _config_with_parts(options):
        from erasure_lightning.cli.composed_fit import fit_parts

        fit_parts(options, file)
    else:
        from erasure_lightning.cli.run import run

        run("fit", argv)


def check_fit(argv: list[str]) -> None:
    """Construct what ``erasure fit`` would run, without a model.

    Args:
        argv: Its arguments; the folder that they name stays as it is.

    Raises:
        ErasureError: If ``erasure fit`` would refuse them.
    """
    options = Options.read(argv)
    if file := _config_with_parts(options):
        from erasure_lightning.cli.composed_fit import parsed_parts

        with TemporaryDirectory() as scratch:
            parsed_parts(options, file, Path(scratch))
    else:
        from erasure_lightning.cli.parsed_fit import parsed_fit

        parsed_fit(argv)


def _config_with_parts(options: Options) -> str | None:
    """The config of a command line that has parts, as it is named there; None without one.

    Raises:
        ErasureError: If a config is missing or none.
    """
    names = [option.value for option in options if option.name in CONFIG_OPTIONS and option.value]
    files = (name for name in names if "\n" not in name)  # others are a config's text
    return next((name for name in files if "parts" in config_content(name)), None)
