"""`FamilyInterface`: what each model family implements."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.conditioning import PADDING, Conditioning
from erasure_lightning.backbones.sampler import Sampler
from erasure_lightning.backbones.towers import EmbeddedPrompts, EncoderOutput
from erasure_lightning.concepts.worlds import World
from erasure_lightning.errors import ErasureError

#: Parts of a denoiser, as ESD names them: where pixels meet text (``x``: cross-attention, or joint
#: attention), the keys and values of the text alone, all but ``x`` (``u``), all; and ``entry``: the
#: layers that read the prompt alone, which closed forms solve for; and ``pixels``: attention of
#: pixels among themselves, and their queries of the text.
Part = Literal["x", "x-strict", "u", "all", "entry", "pixels"]

#: Modules that adapters can be attached to: ``transformer layers``, every linear layer and
#: convolution of the transformers; ``text attention``, each attention in which pixels meet text, as
#: a whole.
Place = Literal["transformer layers", "text attention"]

#: What only some families can do: return the pixels' attention to text tokens; search prompts word
#: by word, since all text towers share one vocabulary; read of a prompt the last states of one CLIP
#: alone; be guided by two predictions; attach adapters to layers of transformers; read text by
#: attention of its own, apart from that of pixels.
Capability = Literal[
    "attention maps",
    "one vocabulary",
    "last text states",
    "classifier-free guidance",
    "transformer layers",
    "cross-attention",
]

#: Height and width in pixels; one number for a square.
Size = int | tuple[int, int]


@dataclass(frozen=True)
class TextInput:
    """Linear layers whose input is a function of the prompt alone, and the same for all of them.

    Args:
        layers: The layers, by their names in the backbone.
        source: The attribute of `Conditioning` that they or ``transform`` read: ``tokens`` or
            ``pooled``.
        columns: Columns of their weights that multiply it; the others stay as they are.
        transform: What the model computes of the token states ``(B, L, E)`` before these layers
            read them, ``(B, L, D)``; the states themselves by default.
        masked: Whether attention leaves out what the layers compute at padding.
    """

    layers: dict[str, nn.Linear]
    source: Literal["tokens", "pooled"]
    columns: slice = field(default_factory=lambda: slice(None))
    transform: Callable[[Tensor], Tensor] | None = None
    masked: bool = False

    @property
    def width(self) -> int:
        """Size ``D`` of the input."""
        return self.weights()[0].shape[1]

    def weights(self) -> list[Tensor]:
        """The weights of `columns`, ``(out, D)`` each; biases are in no closed form."""
        return [layer.weight[:, self.columns] for layer in self.layers.values()]

    def rows(self, conditioning: Conditioning) -> Tensor:
        """Inputs of the layers, ``(B, N, D)``: one per token, or one pooled vector.

        Those that are not `read` are zeros, which leave normal equations as they are.
        """
        if self.source == "pooled":
            return cast(Tensor, conditioning.pooled).unsqueeze(1)
        tokens = conditioning.tokens
        rows = tokens if self.transform is None else self.transform(tokens)
        return rows * self.read(conditioning).unsqueeze(2) if self.masked else rows

    def read(self, conditioning: Conditioning) -> Tensor:
        """Mask of the `rows` whose images are read, ``(B, N)``: all but masked padding."""
        if self.source == "tokens" and self.masked:
            return ~conditioning.positions(PADDING)
        shape = conditioning.ids.shape if self.source == "tokens" else (len(conditioning), 1)
        return torch.ones(shape, dtype=torch.bool, device=conditioning.tokens.device)

    def reads_concept(self, conditioning: Conditioning) -> Tensor:
        """Mask of the `rows` that are `read` and depend on the concept's words, ``(B, N)``.

        These are the tokens of `Conditioning.reads_concept`, or the pooled vector.
        """
        read = self.read(conditioning)
        return conditioning.reads_concept() & read if self.source == "tokens" else read

    def named(self, solved: Sequence[Tensor]) -> dict[str, Tensor]:
        """Whole weights with new values ``(out, D)`` in their columns, by name in the backbone."""
        named = {}
        for (name, layer), new in zip(self.layers.items(), solved, strict=True):
            dtype = torch.promote_types(new.dtype, layer.weight.dtype)
            weight = layer.weight.detach().to(dtype).clone()
            weight[:, self.columns] = new.to(weight)
            named[f"{name}.weight"] = weight
        return named


class FamilyInterface(nn.Module, ABC):
    """The methods that depend on the family; `Backbone` has all others."""

    #: The family's pipeline class in diffusers.
    pipeline_class: ClassVar[str]
    #: Part of the backbone -> component of the pipeline: for loading, edits, exports and reports.
    components: ClassVar[dict[str, str]]
    #: What the family can do beyond predicting.
    capabilities: ClassVar[frozenset[Capability]]

    @classmethod
    @abstractmethod
    def from_pipeline(cls, name: str, pipeline: Any, world: World | None = None) -> Self:
        """The backbone of a diffusers pipeline; weights are shared with it.

        Args:
            name: The user's name for it.
            pipeline: A pipeline of `pipeline_class`.
            world: The world it came from, where it came from one.

        Raises:
            ErasureError: If the family cannot be trained with its scheduler or prediction type.
        """

    @classmethod
    @abstractmethod
    def check_configs(cls, name: str, configs: Mapping[str, Any], scheduler: Any) -> None:
        """Checks that a pipeline's components fit together, before weights are read.

        Args:
            name: The user's name for it.
            configs: Config of each component with weights, by name.
            scheduler: The pipeline's scheduler.

        Raises:
            ErasureError: If they do not.
        """

    @abstractmethod
    def to_pipeline(self) -> Any:
        """A diffusers pipeline of the current weights, which are shared with it."""

    @abstractmethod
    def join(
        self, prompts: Sequence[EmbeddedPrompts], outputs: Sequence[EncoderOutput]
    ) -> Conditioning:
        """The towers' outputs as the denoiser reads them.

        Args:
            prompts: The embedded prompts, one record per tower.
            outputs: The towers' outputs.
        """

    @abstractmethod
    def denoise(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None = None
    ) -> Tensor:
        """The native prediction, ``(B, C, h, w)``.

        Args:
            x: Noisy latents of the noise process, ``(B, C, h, w)``.
            t: Their times, real-valued, ``(B,)`` or ``()``.
            conditioning: Conditioning of the prompts, ``(B, L, D)``.
            guidance: Scale for a denoiser that takes it as an input (`embeds_guidance`); 1 by
                default, as in every prediction that a loss compares.
        """

    @property
    def embeds_guidance(self) -> bool:
        """Whether the guidance scale is an input of the denoiser, as in guidance distillation.

        By default it is not: guidance is classifier-free, and takes two predictions.
        """
        return False

    @abstractmethod
    def text_inputs(self) -> list[TextInput]:
        """The layers that closed forms can solve for; those that read tokens come first."""

    @abstractmethod
    def text_attention(self) -> dict[str, nn.Linear]:
        """Layers that compute attention's keys and values of the text, by their names here."""

    @abstractmethod
    def text_queries_and_keys(self) -> dict[str, nn.Linear]:
        """Layers whose outputs decide the attention to and from the text, by their names here.

        The keys of `text_attention`, and the queries of the text where it has any.
        """

    @abstractmethod
    def value_layers(self) -> dict[str, nn.Linear]:
        """The text layers that compute attention's values, by name; may be empty."""

    @abstractmethod
    def cross_attention_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of every attention in which pixels meet text."""

    def pixel_attention_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of self-attention, and of cross-attention's queries.

        Raises:
            ErasureError: If pixels and text share their attention (no capability
                ``cross-attention``).
        """
        raise ErasureError(
            f"{type(self).__name__} has no attention of pixels apart from that of the text. Train"
            " part x."
        )

    @abstractmethod
    def adaptable(self, place: Place) -> dict[str, nn.Module]:
        """Modules of the denoiser that adapters can be attached to, by their names here.

        Args:
            place: ``transformer layers`` or ``text attention``, as `Place` describes them.

        Raises:
            ErasureError: If it is neither.
        """

    @abstractmethod
    def sampler(self, steps: int, size: Size | None = None) -> Sampler:
        """The pipeline's own sampler for one rollout of ``steps`` steps.

        Args:
            steps: Sampling steps, at least 1.
            size: Height and width of the images in pixels, on which some families' times depend;
                the model's own by default.

        Raises:
            ErasureError: If the number of steps is out of range.
        """

    @property
    @abstractmethod
    def default_sampling(self) -> tuple[int, float]:
        """Sampling steps and guidance scale: the world's, else the stock pipeline's own."""

    @property
    @abstractmethod
    def sampler_name(self) -> str:
        """Class of the pipeline's sampler."""

    @property
    @abstractmethod
    def sampler_settings(self) -> dict[str, Any]:
        """Settings of the pipeline's sampler by name."""

    @property
    @abstractmethod
    def sampling_fingerprint(self) -> str:
        """A short hash of what images depend on beside weights: the sampler and its settings."""

    @abstractmethod
    def latent_shape(self, size: Size | None = None) -> tuple[int, int, int]:
        """Channels, height and width of an image's latents.

        Args:
            size: Height and width of the image in pixels; the model's own by default.

        Raises:
            ErasureError: If the model cannot generate that size.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in 0..1 of latents ``(B, C, h, w)``."""

    @abstractmethod
    def compress(self, images: Tensor) -> Tensor:
        """Latents ``(B, C, h, w)`` of images ``(B, 3, H, W)`` in 0..1; `decode` is the inverse."""

    def attention(self) -> AbstractContextManager[dict[str, Tensor]]:
        """Records the pixels' attention ``(B, heads, pixels, L)`` to text tokens, by layer.

        Those of the last `denoise` inside the context remain, with their gradients, in the order of
        the forward. Where text and pixels attend jointly, a pixel's do not sum to 1.

        Raises:
            ErasureError: If the family has no such layers (capability ``attention maps``).
        """
        raise ErasureError(f"{type(self).__name__} has no attention maps of pixels and text.")
