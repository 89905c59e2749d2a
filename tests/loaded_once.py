"""Models that are read from their files once in a process, and copied for every fit."""

import hashlib
from collections import defaultdict
from functools import cache

import torch

from erasure_lightning.backbones.structural_copy import copier
from erasure_lightning.backbones.text_cache import encoders_version

#: Capacity in bytes of a cache that models share: 8192 prompts of the emoji world.
_LIMIT = 2**28


def copies_of_one(load):
    """`load_backbone` that reads each model once.

    Args:
        load: The function that reads.
    """

    @cache
    def read(default, *arguments):
        model = load(*arguments)
        shared = [model.world, *(tower.tokenizer for tower in model.towers)]
        return copier(model, shared)

    def copied(*arguments):
        # Some precisions of trainers set the default.
        return read(torch.get_default_dtype(), *arguments)()

    return copied


def encoded_once(encode):
    """`Backbone.encode` for which models with equal text towers share one cache.

    Args:
        encode: The method.
    """
    caches = defaultdict(dict)

    def encode_shared(self, prompts):
        version = encoders_version(self.text_encoders)
        texts = self._text_cache
        is_other = version not in (None, texts._version) and self._offloaded is None
        if is_other and (contents := _contents(self, version[:4])):
            texts._encoded, texts._version = caches[contents], version
            texts.limit = max(texts.limit, _LIMIT)
        return encode(self, prompts)

    return encode_shared


def _contents(model, circumstances):
    """What encodings depend on; None for a replaced method, and for values not on the CPU."""
    if vars(model).keys() & {"embed", "contextualize"}:
        return None
    values = model.text_encoders.state_dict().values()
    if any(type(value) is not torch.Tensor or value.device.type != "cpu" for value in values):
        return None
    hashed = hashlib.blake2b()
    for value in values:
        hashed.update(value.flatten().view(torch.uint8).numpy())
    settings = [
        (type(tower), {key: v for key, v in vars(tower).items() if isinstance(v, int | str)})
        for tower in model.towers
    ]
    return type(model), hashed.digest(), *map(str, circumstances), str(settings)
