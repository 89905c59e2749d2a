"""The command line: ``erasure``, or ``python -m erasure_lightning``."""

from erasure_lightning.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
