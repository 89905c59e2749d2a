"""Models that are read from their files once in a process, and copied for every fit."""

from functools import cache

import torch

from erasure_lightning.backbones.structural_copy import copier


def copies_of_one(load):
    """`load_backbone` that reads each model once.

    Args:
        load: The function that reads.
    """

    @cache
    def read(default, *arguments):
        model = load(*arguments)
        return copier(model, [model.world, *(tower.tokenizer for tower in model.towers)])

    # Some precisions of trainers set the default.
    return lambda *arguments: read(torch.get_default_dtype(), *arguments)()
