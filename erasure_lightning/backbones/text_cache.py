"""A least-recently-used cache of the outputs of frozen text encoders."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef

from erasure_lightning.adapters.base import adapters_of
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.concepts.concept import Phrase

#: Prompts per batch, half of the sentences of a concept. The last batch is filled up with repeats:
#: matrix products of another shape may round differently, and a prompt's encoding would depend on
#: the rest of its batch.
PROMPTS_PER_BATCH = 5

#: Smallest capacity in bytes: 2048 prompts of the emoji world, 280 of Stable Diffusion 1.x.
_LIMIT = 64 * 2**20

#: The capacity as a share of the encoders' size: a T5-XXL in bfloat16 gets 1.1 GiB for what its
#: 9 GiB need not encode again, which is 140 prompts of FLUX.1-dev.
_SHARE = 1 / 8


class TextCache:
    """A cache of encoded prompts.

    Args:
        encoders: The text encoders.
    """

    def __init__(self, encoders: nn.Module) -> None:
        size = sum(parameter.nbytes for parameter in encoders.parameters())
        #: Capacity in bytes between calls, at least 0.
        self.limit = max(_LIMIT, int(size * _SHARE))
        self._encoded: dict[str | Phrase, Conditioning] = {}
        self._version: Hashable = None

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which is empty: it may have other encoders."""
        return {"limit": self.limit, "_encoded": {}, "_version": None}

    def encode(
        self,
        prompts: Sequence[str | Phrase],
        version: Hashable,
        encode: Callable[[Sequence[str | Phrase]], Conditioning],
        encoding: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> list[Conditioning]:
        """The conditioning of each prompt, tokens ``(L, D)``; no prompt is encoded twice.

        Args:
            prompts: Any number, with repeats.
            version: The encoders' version (`encoders_version`); another one empties the cache.
            encode: Encodes `PROMPTS_PER_BATCH` prompts.
            encoding: Context in which prompts are encoded; not entered if all are known.
        """
        if version != self._version:
            self._encoded = {}
            self._version = version
        unique = list(dict.fromkeys(prompts))
        known = {prompt: self._encoded.pop(prompt) for prompt in unique if prompt in self._encoded}
        missing = [prompt for prompt in unique if prompt not in known]
        with encoding() if missing else nullcontext(), torch.inference_mode(False), torch.no_grad():
            for i in range(0, len(missing), PROMPTS_PER_BATCH):
                batch = missing[i : i + PROMPTS_PER_BATCH]
                filling = batch[-1:] * (PROMPTS_PER_BATCH - len(batch))
                encoded = encode([*batch, *filling])
                known |= {prompt: encoded[row].clone() for row, prompt in enumerate(batch)}
        self._encoded |= known
        while self._encoded and len(self._encoded) * known[unique[0]].nbytes > self.limit:
            del self._encoded[next(iter(self._encoded))]
        return [known[prompt] for prompt in prompts]


def encoders_version(text_encoders: nn.Module) -> Hashable:
    """A key that changes with the encoders' outputs; None where they must not be cached.

    This is where a parameter is trained, and where the encoders are sharded: their forward is a
    collective. A change that torch does not count (``parameter.data.add_``) is not noticed.
    """
    parameters = list(text_encoders.parameters())
    if not parameters or any(p.requires_grad or isinstance(p, DTensor) for p in parameters):
        return None
    device = parameters[0].device
    dtype = parameters[0].dtype
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    strengths = tuple(rule.strength for rule in adapters_of(text_encoders))
    # References, since a later storage may have the address of one that was freed meanwhile.
    references = map(StorageWeakRef, (p.untyped_storage() for p in parameters))
    versions = zip(references, (p._version for p in parameters), strict=True)
    return device, dtype, autocast, strengths, *versions
