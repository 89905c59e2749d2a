"""Models that are read from their files once in a process, and copied for every fit."""

from functools import cache

import torch

from erasure_lightning.backbones.structural_copy import copier
from erasure_lightning.backbones.text_cache import encoders_version

#: Capacity in bytes of the cache that copies share: 8192 prompts of the emoji world.
_LIMIT = 2**28


def copies_of_one(load):
    """`load_backbone` that reads each model once, whose copies encode each prompt once.

    A copy whose text encoders are no longer what was read empties a cache of its own instead.

    Args:
        load: The function that reads.
    """

    @cache
    def read(default, *arguments):
        model = load(*arguments)
        shared = [model.world, *(tower.tokenizer for tower in model.towers)]
        return copier(model, shared), model._text_cache._encoded

    def copied(*arguments):
        # Some precisions of trainers set the default.
        copy, encoded = read(torch.get_default_dtype(), *arguments)
        model = copy()
        texts = model._text_cache
        texts._encoded, texts._version = encoded, encoders_version(model.text_encoders)
        texts.limit = _LIMIT
        return model

    return copied
