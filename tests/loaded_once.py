"""Models that are read from their files once in a process, and copied for every fit."""

from copy import deepcopy
from functools import cache

import torch


def copies_of_one(load):
    """`load_backbone` that reads each model once.

    Args:
        load: The function that reads.
    """
    read = cache(lambda default, *arguments: load(*arguments))

    def copied(*arguments):
        model = read(torch.get_default_dtype(), *arguments)  # some precisions of trainers set it
        shared = [model.world, *(tower.tokenizer for tower in model.towers)]
        return deepcopy(model, {id(each): each for each in shared})

    return copied
