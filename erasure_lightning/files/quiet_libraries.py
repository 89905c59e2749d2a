"""Silences diffusers and transformers while they read a model's files."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences the libraries' progress bars, and their remarks on what is checked or repaired here.

    Transformers stays silent.
    """
    from transformers.utils import logging as transformers_logging  # sets its logger's level

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging  # imports more of transformers

    level = diffusers_logging.get_verbosity()
    has_bar = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity(logging.CRITICAL)  # what it logs as an error, it raises too
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(level)
        if has_bar:
            diffusers_logging.enable_progress_bar()
