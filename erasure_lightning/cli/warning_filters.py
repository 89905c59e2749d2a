"""Filters for warnings of Lightning, torch and others that no user of ours needs."""

import logging
import warnings

_MESSAGES = (
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*Found \d+ module\(s\) in eval mode.*",
    r".*resuming from a checkpoint that ended before the epoch.*",
    r".*`weights_only` was not set.*",
    r".*torchvision.*",
    r".*Total length of `list` across ranks is zero.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*Trying to infer the `batch_size`.*",
    r".*No positive class.*",
    r".*was called before the ``update`` method.*",  # a rank that drew none of a group's images
    r".*`broadcast_buffers` is deprecated.*",  # older torch knows no other name for it
    # No denoiser changes it in place; tests compare gradients.
    r".*FSDP2-wrapped module .* returned a view tensor.*",
    r".*lr_scheduler\.step\(\)` before `optimizer\.step\(\).*",
)


def hush() -> None:
    """Silence tips and habitual warnings; every other warning is still printed."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("transformers", "diffusers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _MESSAGES:
        warnings.filterwarnings("ignore", message=message)
