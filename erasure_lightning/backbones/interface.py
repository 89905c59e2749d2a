"""What a model family implements: its parts, how they fit together, and what stands where."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.sampler import Sampler
from erasure_lightning.backbones.towers import EmbeddedPrompts, EncoderOutput
from erasure_lightning.concepts.worlds import World
from erasure_lightning.errors import ErasureError

#: Parts of a denoiser, in ESD's terms: its cross-attention, text keys and values alone, all but
#: cross-attention, all.
Part = Literal["x", "x-strict", "u", "all"]

#: Where adapters can stand: every linear layer and convolution of the transformers, or each
#: cross-attention as a whole.
Place = Literal["transformer layers", "cross-attention"]

#: What only some families can do: give the probabilities of cross-attention; search prompts word by
#: word, since all text towers share one vocabulary; put adapters beside a `Place`.
Capability = Literal["attention maps", "one vocabulary", "transformer layers", "cross-attention"]

#: Height and width in pixels; one number for a square.
Size = int | tuple[int, int]


@dataclass(frozen=True)
class TextInput:
    """Linear layers whose input is a function of the prompt alone, and the same for all of them.

    Args:
        layers: The layers, by their names in the backbone.
        source: What of a `Conditioning` they read: its ``tokens`` or its ``pooled`` vector.
        columns: Which columns of their weights read it; the others read something else, and stay.
    """

    layers: dict[str, nn.Linear]
    source: Literal["tokens", "pooled"]
    columns: slice = field(default_factory=lambda: slice(None))

    @property
    def width(self) -> int:
        """Size ``D`` of the input."""
        return self.weights()[0].shape[1]

    def weights(self) -> list[Tensor]:
        """The weights of the columns that read it, ``(out, D)`` each; biases stand outside of every
        closed form.
        """
        return [layer.weight[:, self.columns] for layer in self.layers.values()]

    def rows(self, conditioning: Conditioning) -> Tensor:
        """Every input that the layers read of prompts, ``(B, N, D)``: token by token, or one pooled
        vector.
        """
        if self.source == "tokens":
            return conditioning.tokens
        return cast(Tensor, conditioning.pooled).unsqueeze(1)

    def from_concept(self, conditioning: Conditioning) -> Tensor:
        """Which of `rows` depend on the concept's words, ``(B, N)``: tokens from the words on, or
        the pooled vector.
        """
        if self.source == "tokens":
            return conditioning.from_concept()
        return torch.ones(len(conditioning), 1, dtype=torch.bool, device=conditioning.tokens.device)

    def named(self, solved: Sequence[Tensor]) -> dict[str, Tensor]:
        """Whole weights with new values ``(out, D)`` in their columns, by name in the backbone."""
        named = {}
        for (name, layer), new in zip(self.layers.items(), solved, strict=True):
            weight = (
                layer.weight.detach().to(torch.promote_types(new.dtype, layer.weight.dtype)).clone()
            )
            weight[:, self.columns] = new.to(weight)
            named[f"{name}.weight"] = weight
        return named


class FamilyInterface(nn.Module, ABC):
    """The methods that depend on the family; `Backbone` has all others."""

    #: The diffusers pipeline class that the family is taken from.
    pipeline_class: ClassVar[str]
    #: Parts of the backbone and the pipeline's component that each is: for loading, edits, exports
    #: and reports.
    components: ClassVar[dict[str, str]]
    #: What the family can do beyond predicting.
    capabilities: ClassVar[frozenset[Capability]]

    @classmethod
    @abstractmethod
    def from_pipeline(cls, name: str, pipeline: Any, world: World | None = None) -> Self:
        """A diffusers pipeline taken apart; weights are shared with it.

        Args:
            name: How the user named it.
            pipeline: A pipeline of `pipeline_class`.
            world: The world it came from, where it came from one.

        Raises:
            ErasureError: If its sampler or its prediction is none that the family can be trained
                with.
        """

    @abstractmethod
    def to_pipeline(self) -> Any:
        """A diffusers pipeline of today's weights, which are shared with it."""

    @abstractmethod
    def join(
        self, prompts: Sequence[EmbeddedPrompts], outputs: Sequence[EncoderOutput]
    ) -> Conditioning:
        """The towers' outputs as the denoiser reads them.

        Args:
            prompts: The embedded prompts, one record a tower.
            outputs: What each tower made of them.
        """

    @abstractmethod
    def denoise(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None = None
    ) -> Tensor:
        """The native prediction, ``(B, C, h, w)``.

        Args:
            x: Noisy latents of the noise process, ``(B, C, h, w)``.
            t: Their times, real-valued, ``(B,)`` or ``()``.
            conditioning: Of the prompts, ``(B, L, D)``.
            guidance: Scale for a denoiser that takes it as an input (`embeds_guidance`); 1 by
                default, as in every prediction that a loss compares.
        """

    @property
    @abstractmethod
    def embeds_guidance(self) -> bool:
        """Whether the denoiser takes the guidance scale as an input, in place of classifier-free
        guidance.
        """

    @abstractmethod
    def text_inputs(self) -> list[TextInput]:
        """The layers that closed forms can solve for: the one that reads tokens first."""

    @abstractmethod
    def value_layers(self) -> dict[str, nn.Linear]:
        """Those of the text layers whose outputs are attention's values, by name; empty where there
        are none.
        """

    @abstractmethod
    def cross_attention_parameters(self) -> dict[str, nn.Parameter]:
        """Weights and biases of every layer where pixels meet the text: `text_layers`, queries and
        outputs.
        """

    @abstractmethod
    def adaptable(self, place: Place) -> dict[str, nn.Module]:
        """Modules of the denoiser that adapters can stand beside, by their names in this backbone."""

    @abstractmethod
    def sampler(self, steps: int) -> Sampler:
        """The pipeline's own sampler for one rollout of ``steps`` steps.

        Raises:
            ErasureError: If it cannot take so many.
        """

    @property
    @abstractmethod
    def sampler_name(self) -> str:
        """Class of the pipeline's sampler."""

    @property
    @abstractmethod
    def sampling_fingerprint(self) -> str:
        """A short hash of what pictures depend on beside weights: the sampler and its settings."""

    @abstractmethod
    def latent_shape(self, size: Size | None = None) -> tuple[int, int, int]:
        """Channels, height and width of the latents of a picture; of the model's own size by
        default.

        Raises:
            ErasureError: If the model cannot draw that size.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in 0..1 of latents ``(B, C, h, w)``."""

    @abstractmethod
    def compress(self, pictures: Tensor) -> Tensor:
        """Latents ``(B, C, h, w)`` of pictures ``(B, 3, H, W)`` in 0..1: what `decode` undoes, as
        well as it can.
        """

    def attention(self) -> AbstractContextManager[dict[str, Tensor]]:
        """Collects, while it is entered, the probabilities ``(B, heads, pixels, L)`` of every
        cross-attention layer.

        The last `denoise` inside counts; they carry gradient.

        Raises:
            ErasureError: If the family has no such layers (capability ``attention maps``).
        """
        raise ErasureError(
            f"{type(self).__name__} has no cross-attention whose maps could be read."
        )
