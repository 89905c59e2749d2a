"""What frozen text encoders said of sentences, kept while nothing can change it."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.concepts import Phrase

#: Sentences read side by side, half of those that a concept is put into. Always as many, the last one repeated: matrix
#: products of another shape may round otherwise, and what is said of a sentence would depend on its company.
BLOCK = 5

#: Bytes that are kept: 2048 sentences of the emoji world, 280 of Stable Diffusion 1.x.
LIMIT = 64 * 2**20


class States:
    """What was said of each sentence; those that were asked for last stay longest.

    Args:
        limit: Bytes that are kept from one question to the next, at least 0.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._kept: dict[str | Phrase, Conditioning] = {}
        self._reader: Hashable = None

    def of(
        self,
        prompts: Sequence[str | Phrase],
        reader: Hashable,
        read: Callable[[Sequence[str | Phrase]], Conditioning],
    ) -> list[Conditioning]:
        """What is said of each prompt, ``(L, D)``; nothing is read twice.

        Args:
            prompts: Sentences.
            reader: Stays equal while what is said of a sentence does; see `reader_of`.
            read: Reads `BLOCK` sentences.
        """
        if reader != self._reader:
            self._kept, self._reader = {}, reader
        asked = list(dict.fromkeys(prompts))
        known = {prompt: self._kept.pop(prompt) for prompt in asked if prompt in self._kept}
        missing = [prompt for prompt in asked if prompt not in known]
        for i in range(0, len(missing), BLOCK):
            block = missing[i : i + BLOCK]
            with torch.inference_mode(False), torch.no_grad():
                said = read([*block, *block[-1:] * (BLOCK - len(block))])
                known |= {prompt: said[place].clone() for place, prompt in enumerate(block)}
        self._kept |= known
        while self._kept and len(self._kept) * known[asked[0]].nbytes > self.limit:
            del self._kept[next(iter(self._kept))]
        return [known[prompt] for prompt in prompts]


def reader_of(text_encoders: nn.Module) -> Hashable:
    """What stays equal while text encoders read as they do; None where they must be asked every time.

    That is so where something of them is trained, and where ranks own parts of them and must all be asked at once. A
    change behind torch's back (``parameter.data.add_``) is not seen.
    """
    parameters = list(text_encoders.parameters())
    if not parameters or any(p.requires_grad or isinstance(p, DTensor) for p in parameters):
        return None
    device, dtype = parameters[0].device, parameters[0].dtype
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    return device, dtype, autocast, *((p.untyped_storage()._cdata, p._version) for p in parameters)
