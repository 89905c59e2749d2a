"""The seam: everything that depends on a model family lives behind `Backbone`."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.checkpointing import checkpoint_blocks
from erasure_lightning.backbones.conditioning import Conditioning as Conditioning  # part of the seam
from erasure_lightning.backbones.process import NoiseProcess
from erasure_lightning.backbones.states import States, reader_of
from erasure_lightning.backbones.twins import share
from erasure_lightning.components import fingerprints
from erasure_lightning.concepts import Phrase
from erasure_lightning.edit_format import plain_name
from erasure_lightning.functional import fingerprint
from erasure_lightning.ranks import gathered
from erasure_lightning.worlds import World

#: Parts of a denoiser, in ESD's terms: its cross-attention, the text layers alone, all but cross-attention, everything.
Part = Literal["x", "x-strict", "u", "all"]

#: Where adapters can stand: every linear layer and convolution of the transformers, or each cross-attention as a whole.
Place = Literal["transformer layers", "cross-attention"]

#: What stands at a token's position.
START, TEMPLATE, CONCEPT, END, PADDING = range(5)


@dataclass(frozen=True)
class Embedded:
    """Prompts as one text encoder's input embeddings, before any context.

    Args:
        embeddings: Word embeddings without positions, ``(B, L, E)``.
        ids: Token ids, ``(B, L)``.
        roles: What stands where (`START`, `TEMPLATE`, `CONCEPT`, `END`, `PADDING`), ``(B, L)``.
    """

    embeddings: Tensor
    ids: Tensor
    roles: Tensor

    @property
    def ends(self) -> Tensor:
        """Position of each prompt's end-of-text token, ``(B,)``."""
        return (self.roles == END).int().argmax(dim=1)

    def positions(self, *roles: int) -> Tensor:
        """Where one of the roles stands, boolean ``(B, L)``."""
        return torch.isin(self.roles, torch.tensor(roles, device=self.roles.device))

    def span(self, otherwise: Tensor | None = None) -> Tensor:
        """First position of the concept's words and one past their last, ``(B, 2)``.

        Args:
            otherwise: Where the empty span of a prompt without a concept stands, ``(B,)``; at 0 by default.
        """
        words = self.positions(CONCEPT).int()
        length, first = words.sum(dim=1), words.argmax(dim=1)
        start = first if otherwise is None else torch.where(length > 0, first, otherwise)
        return torch.stack((start, start + length), dim=1)

    def trimmed(self) -> "Embedded":
        """Cut behind the longest prompt; a causal tower gives the same states there at a fraction of the cost."""
        length = int(self.ends.max()) + 1
        return Embedded(self.embeddings[:, :length], self.ids[:, :length], self.roles[:, :length])


class Backbone(nn.Module, ABC):
    """A text-to-image model taken apart: text encoders, denoiser, autoencoder, noise process.

    A family implements the abstract methods; nothing above this folder asks which family it is.

    Args:
        name: How the user named it: a world, a folder or a Hub id.
        denoiser: UNet or transformer that predicts in the process's native form.
        text_encoders: One, two or three text towers.
        process: How latents are noised and what the denoiser predicts.
        world: The world it came from, where it came from one.
    """

    #: Parts of the backbone, and which component of the family's pipeline each is.
    components: ClassVar[dict[str, str]]

    #: Whether weights are split over ranks, so that each of them must be asked by all ranks together.
    lockstep = False

    def __init__(
        self,
        *,
        name: str,
        denoiser: nn.Module,
        text_encoders: Sequence[nn.Module],
        process: NoiseProcess,
        world: World | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.denoiser = denoiser
        self.text_encoders = nn.ModuleList(text_encoders)
        self.process = process
        self.world = world
        self._states = States()

    @abstractmethod
    def embed(self, prompts: Sequence[str | Phrase]) -> tuple[Embedded, ...]:
        """Look up the prompts' words, padded to the encoder's full length: one record per text encoder.

        Raises:
            ErasureError: If a concept's words fall behind the encoder's last position.
        """

    @abstractmethod
    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Those of the prompts that a text encoder reads the beginning of only."""

    @abstractmethod
    def contextualize(self, embedded: Sequence[Embedded]) -> Conditioning:
        """Run the text encoders on input embeddings."""

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The native prediction at latents ``x`` and times ``t`` ``(B,)`` or ``()``, both ``(B, C, h, w)``."""

    @abstractmethod
    def text_layers(self) -> dict[str, nn.Linear]:
        """The linear layers that read text tokens directly, by their names in this backbone."""

    @abstractmethod
    def cross_attention_parameters(self) -> dict[str, nn.Parameter]:
        """Weights and biases of every layer where pixels meet the text: `text_layers`, queries and outputs."""

    @abstractmethod
    def adaptable(self, place: Place) -> dict[str, nn.Module]:
        """Modules of the denoiser that adapters can stand beside, by their names in this backbone."""

    @abstractmethod
    def word_tables(self) -> tuple[Tensor, ...]:
        """The frozen word embeddings ``(V, E)`` of each text encoder."""

    @abstractmethod
    def words(self) -> Tensor:
        """Ids ``(W,)`` of the first text encoder's tokens that are whole words: spelt, they are read as themselves."""

    @abstractmethod
    def spell(self, ids: Tensor) -> str:
        """The words that token ids ``(N,)`` of the first text encoder stand for."""

    @abstractmethod
    def text_parameters(self, blocks: int | None = None) -> dict[str, nn.Parameter]:
        """What the text encoders compute with: blocks and final norms, not token and position tables.

        Args:
            blocks: Only so many blocks of each, counted from the last; all by default.
        """

    @abstractmethod
    def scheduler(self, steps: int) -> Any:
        """A fresh sampler (diffusers scheduler) with its timesteps set."""

    @abstractmethod
    def latent_shape(self, size: int | tuple[int, int] | None = None) -> tuple[int, int, int]:
        """Channels, height and width of the latents of a picture of ``size`` pixels; the model's own by default."""

    @abstractmethod
    def noise(self, seeds: Sequence[int], size: int | tuple[int, int] | None = None) -> Tensor:
        """Starting latents ``(B, C, h, w)``, a generator per seed: a seed means the same noise in any batch.

        Args:
            seeds: One per picture.
            size: Height and width in pixels, one number where they are equal; the model's own by default.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in 0..1 of latents ``(B, C, h, w)``."""

    @abstractmethod
    def compress(self, pictures: Tensor) -> Tensor:
        """Latents ``(B, C, h, w)`` of pictures ``(B, 3, H, W)`` in 0..1: what `decode` undoes, as well as it can."""

    @abstractmethod
    def attention(self) -> AbstractContextManager[dict[str, Tensor]]:
        """Collects, while it is entered, the probabilities ``(B, heads, pixels, L)`` of every cross-attention layer.

        The last `denoise` inside counts; they carry gradient.
        """

    def denoiser_parameters(self, part: Part = "all") -> dict[str, nn.Parameter]:
        """What the denoiser computes with, or a part of it, by name in this backbone."""
        if part == "x":
            return self.cross_attention_parameters()
        if part == "x-strict":
            layers = self.text_layers().items()
            return {f"{layer}.{name}": p for layer, module in layers for name, p in module.named_parameters()}
        cross = self.cross_attention_parameters() if part == "u" else {}
        found = {f"denoiser.{name}": parameter for name, parameter in self.denoiser.named_parameters()}
        return {name: parameter for name, parameter in found.items() if name not in cross}

    def encode(self, prompts: Sequence[str | Phrase]) -> Conditioning:
        """What the denoiser reads of the prompts, ``(B, L, D)``; frozen text encoders read each sentence once."""
        reader = reader_of(self.text_encoders)
        if reader is None:
            return self.contextualize(self.embed(prompts))
        return Conditioning.stack(self._states.of(prompts, reader, lambda some: self.contextualize(self.embed(some))))

    def summarize(self, embedded: Sequence[Embedded]) -> Tensor:
        """End-of-text states ``(B, D)``, encoded no further than they are read."""
        short = tuple(e.trimmed() for e in embedded)
        tokens = self.contextualize(short).tokens
        return tokens[torch.arange(len(tokens), device=tokens.device), short[0].ends]

    def original(self, edited: Collection[str]) -> Self:
        """A frozen backbone with today's weights that stays as it is when ``edited`` change here.

        Only modules on the way to an edited parameter are copied, and of their parameters only the edited; all else is
        the same object, so the cost is one more copy of what is edited.

        Args:
            edited: Names of parameters, or of modules that will be replaced (adapters).
        """
        twin = share(self, {tuple(name.split(".")) for name in edited})
        if twin.text_encoders is not self.text_encoders:
            twin._states = States()
        return twin

    def fingerprint(self, dtype: torch.dtype | None = None) -> str:
        """A short hash of the weights, or of what they would be when rounded to a precision."""
        return fingerprint(self, dtype)

    @classmethod
    def part_of(cls, name: str) -> str:
        """Which of the parts in `components` a parameter or module is in, by its name in this backbone."""
        return max((part for part in cls.components if name.startswith(f"{part}.")), key=len)

    @classmethod
    def component_name(cls, name: str) -> str:
        """A parameter's name in an edit file: the pipeline's component and its own name there."""
        part = cls.part_of(name)
        return f"{cls.components[part]}.{plain_name(name.removeprefix(f'{part}.'))}"

    def fingerprints(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        """The `fingerprints` of the pipeline's components that parameters or modules are in.

        Args:
            names: Of parameters or modules in this backbone.
        """
        parts = sorted({self.part_of(name) for name in names})
        return {self.components[part]: fingerprints(self.get_submodule(part)) for part in parts}

    def checkpoint(self) -> None:
        """Keep only what blocks are asked for the backward, which computes the rest again: less memory, more time."""
        checkpoint_blocks(self.denoiser, self.text_encoders)

    def computing(self) -> AbstractContextManager[object]:
        """While entered, layers compute in the base's precision, also where an edited weight or an input has more."""
        low = self.base in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.base) if low else nullcontext()

    def anyone(self, flag: bool) -> bool:
        """Whether the flag is up on any rank, where ranks ask the model together; else this rank's own.

        What decides if a split model is asked must be decided by all, or some wait for the others forever.
        """
        return any(gathered([flag])) if self.lockstep else flag

    @property
    def device(self) -> torch.device:
        """Where the weights are; those of a denoiser may still be missing (`load_backbone`)."""
        return next(self.text_encoders.parameters()).device

    @property
    def base(self) -> torch.dtype:
        """The frozen weights' precision; told by a word table, which no method edits."""
        return self.word_tables()[0].dtype

    @property
    def dtype(self) -> torch.dtype:
        """Precision of latents, text states and predictions: the base's, float32 at least."""
        return torch.promote_types(self.base, torch.float32)
