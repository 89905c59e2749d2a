"""A cache of the conditioning that frozen text encoders give, valid while their weights stay the
same.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.concepts.concept import Phrase

#: Prompts encoded in one batch, half of the sentences of a concept. Always as many, the last one
#: repeated: matrix products of another shape may round otherwise, and a prompt's encoding would
#: depend on the rest of its batch.
BATCH_SIZE_OF_TEXTS = 5

#: Bytes that are kept: 2048 prompts of the emoji world, 280 of Stable Diffusion 1.x.
_LIMIT = 64 * 2**20


class TextCache:
    """A cache of encoded prompts that drops the least recently used.

    Args:
        limit: Bytes that are kept from one call to the next, at least 0.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self.limit = limit
        self._kept: dict[str | Phrase, Conditioning] = {}
        self._reader: Hashable = None

    def of(
        self,
        prompts: Sequence[str | Phrase],
        reader: Hashable,
        read: Callable[[Sequence[str | Phrase]], Conditioning],
    ) -> list[Conditioning]:
        """The conditioning of each prompt, its states ``(1, L, D)``; no prompt is encoded twice.

        Args:
            prompts: Any number, with repeats.
            reader: Stays equal while the encoders give the same; see `encoders_version`.
            read: Encodes `BATCH_SIZE_OF_TEXTS` prompts.
        """
        if reader != self._reader:
            self._kept, self._reader = {}, reader
        unique = list(dict.fromkeys(prompts))
        known = {prompt: self._kept.pop(prompt) for prompt in unique if prompt in self._kept}
        missing = [prompt for prompt in unique if prompt not in known]
        for i in range(0, len(missing), BATCH_SIZE_OF_TEXTS):
            block = missing[i : i + BATCH_SIZE_OF_TEXTS]
            with torch.inference_mode(False), torch.no_grad():
                encoded = read([*block, *block[-1:] * (BATCH_SIZE_OF_TEXTS - len(block))])
                known |= {prompt: encoded[place].clone() for place, prompt in enumerate(block)}
        self._kept |= known
        while self._kept and len(self._kept) * known[unique[0]].nbytes > self.limit:
            del self._kept[next(iter(self._kept))]
        return [known[prompt] for prompt in prompts]


def encoders_version(text_encoders: nn.Module) -> Hashable:
    """A key that stays equal while text encoders give the same; None where they must run every
    time.

    They must where any of their parameters is trained, and where ranks own parts of them and must
    all run together. A change behind torch's back (``parameter.data.add_``) is not seen.
    """
    parameters = list(text_encoders.parameters())
    if not parameters or any(p.requires_grad or isinstance(p, DTensor) for p in parameters):
        return None
    device, dtype = parameters[0].device, parameters[0].dtype
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    return device, dtype, autocast, *((p.untyped_storage()._cdata, p._version) for p in parameters)
