"""The device of commands that run without a trainer."""

import torch


def default_device() -> torch.device:
    """The machine's accelerator; its CPU where there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
