"""``erasure fit``: of one method, or of a config with parts."""

from erasure_lightning.api.quiet import silence
from erasure_lightning.cli.configs import config_with_parts
from erasure_lightning.cli.options import Options


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
    if file := config_with_parts(options):
        from erasure_lightning.cli.composed_fit import fit_parts

        fit_parts(options, file)
    else:
        from erasure_lightning.cli.run import run

        run("fit", argv)
