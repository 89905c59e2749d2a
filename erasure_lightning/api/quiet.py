"""Filters of messages of Lightning and other libraries that users of this package do not need."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_MESSAGES = (
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*Found \d+ module\(s\) in eval mode.*",
    r".*resuming from a checkpoint that ended before the epoch.*",
    r".*`weights_only` was not set.*",
    r".*torchvision.*",
    r".*`gradient_checkpointing_enable` is deprecated.*",  # older transformers has no other
    r".*Total length of `list` across ranks is zero.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*Trying to infer the `batch_size`.*",
    r".*No positive class.*",
    r".*was called before the ``update`` method.*",  # a rank without an image of a group
    r".*`broadcast_buffers` is deprecated.*",  # older torch has no other name for it
    r".*FSDP2-wrapped module .* returned a view tensor.*",  # no denoiser changes it in place
    r".*lr_scheduler\.step\(\)` before `optimizer\.step\(\).*",
    r".*cannot be pickled.*",  # of latent sources, which checkpoints hold by themselves
)

_LOGGERS = {
    **dict.fromkeys(("lightning.pytorch", "lightning.fabric", "lightning"), logging.WARNING),
    **dict.fromkeys(("transformers", "diffusers"), logging.ERROR),
    "lightning.pytorch.profilers": logging.INFO,  # they log their report
}


def silence() -> None:
    """Ignore the messages for the rest of the process."""
    for name, level in _LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    for message in _MESSAGES:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore the messages for a while."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        silence()
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def interruptible() -> Iterator[None]:
    """Pass Ctrl-C on as ``KeyboardInterrupt``, where Lightning would end the process."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
