"""The seam: everything that depends on a model family lives behind `Backbone`."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.checkpointing import checkpoint_blocks
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.process import NoiseProcess
from erasure_lightning.backbones.sampler import Sampler
from erasure_lightning.backbones.states import States, reader_of
from erasure_lightning.backbones.towers import Embedded, Encoded, TextTower
from erasure_lightning.backbones.twins import share
from erasure_lightning.components import fingerprints
from erasure_lightning.concepts import Phrase
from erasure_lightning.edit_format import plain_name
from erasure_lightning.errors import ErasureError
from erasure_lightning.functional import fingerprint
from erasure_lightning.ranks import gathered
from erasure_lightning.worlds import World

#: Parts of a denoiser, in ESD's terms: its cross-attention, text keys and values alone, all but cross-attention, all.
Part = Literal["x", "x-strict", "u", "all"]

#: Where adapters can stand: every linear layer and convolution of the transformers, or each cross-attention as a whole.
Place = Literal["transformer layers", "cross-attention"]

#: What only some families can do: give the probabilities of cross-attention; search prompts word by word, since all
#: text towers share one vocabulary; put adapters beside a `Place`.
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
        """The weights of the columns that read it, ``(out, D)`` each; biases stand outside of every closed form."""
        return [layer.weight[:, self.columns] for layer in self.layers.values()]

    def rows(self, conditioning: Conditioning) -> Tensor:
        """Every input that the layers read of prompts, ``(B, N, D)``: token by token, or one pooled vector."""
        if self.source == "tokens":
            return conditioning.tokens
        return cast(Tensor, conditioning.pooled).unsqueeze(1)

    def from_concept(self, conditioning: Conditioning) -> Tensor:
        """Which of `rows` depend on the concept's words, ``(B, N)``: tokens from the words on, or the pooled vector."""
        if self.source == "tokens":
            return conditioning.from_concept()
        return torch.ones(len(conditioning), 1, dtype=torch.bool, device=conditioning.tokens.device)

    def named(self, solved: Sequence[Tensor]) -> dict[str, Tensor]:
        """Whole weights with new values ``(out, D)`` in their columns, by name in the backbone."""
        named = {}
        for (name, layer), new in zip(self.layers.items(), solved, strict=True):
            weight = layer.weight.detach().to(torch.promote_types(new.dtype, layer.weight.dtype)).clone()
            weight[:, self.columns] = new.to(weight)
            named[f"{name}.weight"] = weight
        return named


class Backbone(nn.Module, ABC):
    """A text-to-image model taken apart: text towers, denoiser, autoencoder, noise process.

    A family implements the abstract methods; nothing above this folder asks which family it is.

    Args:
        name: How the user named it: a world, a folder or a Hub id.
        denoiser: UNet or transformer that predicts in the process's native form.
        text_encoders: One, two or three text towers.
        process: How latents are noised and what the denoiser predicts.
        world: The world it came from, where it came from one.
    """

    #: The diffusers pipeline class that the family is taken from.
    pipeline_class: ClassVar[str]
    #: Parts of the backbone and the pipeline's component that each is: for loading, edits, exports and reports.
    components: ClassVar[dict[str, str]]
    #: What the family can do beyond predicting.
    capabilities: ClassVar[frozenset[Capability]]

    #: Whether weights are split over ranks, so that each of them must be asked by all ranks together.
    lockstep = False

    def __init__(
        self,
        *,
        name: str,
        denoiser: nn.Module,
        text_encoders: Sequence[TextTower],
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

    @classmethod
    @abstractmethod
    def from_pipeline(cls, name: str, pipeline: Any, world: World | None = None) -> Self:
        """A diffusers pipeline taken apart; weights are shared with it.

        Args:
            name: How the user named it.
            pipeline: A pipeline of `pipeline_class`.
            world: The world it came from, where it came from one.

        Raises:
            ErasureError: If its sampler or its prediction is none that the family can be trained with.
        """

    @abstractmethod
    def to_pipeline(self) -> Any:
        """A diffusers pipeline of today's weights, which are shared with it."""

    @abstractmethod
    def join(self, prompts: Sequence[Embedded], outputs: Sequence[Encoded]) -> Conditioning:
        """The towers' outputs as the denoiser reads them.

        Args:
            prompts: The embedded prompts, one record a tower.
            outputs: What each tower made of them.
        """

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None = None) -> Tensor:
        """The native prediction, ``(B, C, h, w)``.

        Args:
            x: Noisy latents of the noise process, ``(B, C, h, w)``.
            t: Their times, real-valued, ``(B,)`` or ``()``.
            conditioning: Of the prompts, ``(B, L, D)``.
            guidance: Scale for a denoiser that takes it as an input (`embeds_guidance`); 1 by default, as in every
                prediction that a loss compares.
        """

    @property
    @abstractmethod
    def embeds_guidance(self) -> bool:
        """Whether the denoiser takes the guidance scale as an input, in place of classifier-free guidance."""

    @abstractmethod
    def text_inputs(self) -> list[TextInput]:
        """The layers that closed forms can solve for: the one that reads tokens first."""

    @abstractmethod
    def cross_attention_parameters(self) -> dict[str, nn.Parameter]:
        """Weights and biases of every layer where pixels meet the text: `text_layers`, queries and outputs."""

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
        """Channels, height and width of the latents of a picture; of the model's own size by default.

        Raises:
            ErasureError: If the model cannot draw that size.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in 0..1 of latents ``(B, C, h, w)``."""

    @abstractmethod
    def compress(self, pictures: Tensor) -> Tensor:
        """Latents ``(B, C, h, w)`` of pictures ``(B, 3, H, W)`` in 0..1: what `decode` undoes, as well as it can."""

    def attention(self) -> AbstractContextManager[dict[str, Tensor]]:
        """Collects, while it is entered, the probabilities ``(B, heads, pixels, L)`` of every cross-attention layer.

        The last `denoise` inside counts; they carry gradient.

        Raises:
            ErasureError: If the family has no such layers (capability ``attention maps``).
        """
        raise ErasureError(f"{type(self).__name__} has no cross-attention whose maps could be read.")

    @property
    def towers(self) -> list[TextTower]:
        """The text towers."""
        return [cast(TextTower, tower) for tower in self.text_encoders]

    def text_layers(self) -> dict[str, nn.Linear]:
        """The linear layers that read text tokens directly, by their names in this backbone."""
        return self.text_inputs()[0].layers

    def text_parameters(self, blocks: int | None = None) -> dict[str, nn.Parameter]:
        """What the model's reading of text depends on: blocks and norms, not token and position tables.

        Args:
            blocks: Only so many blocks of each tower, counted from the layer that is read; all by default.
        """
        named: dict[str, nn.Parameter] = {}
        for number, tower in enumerate(self.towers):
            read = tower.read_parameters(blocks)
            named |= {f"text_encoders.{number}.{name}": parameter for name, parameter in read.items()}
        return named

    @staticmethod
    def edits_text(names: Collection[str]) -> bool:
        """Whether any of the parameters named belongs to a text tower."""
        return any(name.startswith("text_encoders.") for name in names)

    @staticmethod
    def edits_denoiser(names: Collection[str]) -> bool:
        """Whether any of the parameters named belongs to the denoiser."""
        return any(name.startswith("denoiser.") for name in names)

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

    def embed(self, prompts: Sequence[str | Phrase]) -> tuple[Embedded, ...]:
        """Look up the prompts' words, padded to each tower's full length: one record a tower.

        Raises:
            ErasureError: If a concept's words fall behind a tower's last position.
        """
        return tuple(tower.embed(prompts, self.dtype) for tower in self.towers)

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Those of the prompts of which a text tower reads the beginning only."""
        cut = {prompt for tower in self.towers for prompt in tower.too_long(prompts)}
        return [prompt for prompt in prompts if prompt in cut]

    def contextualize(self, prompts: Sequence[Embedded]) -> Conditioning:
        """Run the text towers on input embeddings, one record a tower."""
        with self.computing():
            outputs = [tower.encode(e) for tower, e in zip(self.towers, prompts, strict=True)]
        return self.join(prompts, [output.to(self.dtype) for output in outputs])

    def encode(self, prompts: Sequence[str | Phrase]) -> Conditioning:
        """What the denoiser reads of the prompts, ``(B, L, D)``; frozen text towers read each sentence once."""
        reader = reader_of(self.text_encoders)
        if reader is None:
            return self.contextualize(self.embed(prompts))
        return Conditioning.stack(self._states.of(prompts, reader, lambda some: self.contextualize(self.embed(some))))

    def unconditional(self, count: int = 1) -> Conditioning:
        """What the denoiser reads where classifier-free guidance asks for no prompt, for a batch of ``count``.

        The empty prompt, pooled vector included, unless the family's pipeline says otherwise.
        """
        return self.encode([""]).expand(count)

    def summarize(self, prompts: Sequence[Embedded]) -> Tensor:
        """What similarity of meaning is measured in, ``(B, S)``; causal towers read no further than they must."""
        return self.contextualize(self.shortened(prompts)).summary

    def shortened(self, prompts: Sequence[Embedded]) -> tuple[Embedded, ...]:
        """The prompts without the padding that no tower needs: causal towers give the same states before it."""
        if not all(tower.causal for tower in self.towers):
            return tuple(prompts)
        length = max(int(embedded.ends.max()) for embedded in prompts) + 1
        return tuple(embedded.cut(length) for embedded in prompts)

    def word_tables(self) -> tuple[Tensor, ...]:
        """The frozen word embeddings ``(V, E)`` of each text tower."""
        return tuple(tower.table for tower in self.towers)

    @property
    def vocabulary_size(self) -> int:
        """Entries of the vocabulary that the text towers share."""
        return len(self.word_tables()[0])

    def words(self) -> Tensor:
        """Ids ``(W,)`` of the vocabulary's whole words: spelled, they are read as themselves."""
        return self.towers[0].words()

    def spell(self, ids: Tensor) -> str:
        """The words that token ids ``(N,)`` of the vocabulary stand for."""
        return self.towers[0].spell(ids)

    def noise(self, seeds: Sequence[int], size: Size | None = None) -> Tensor:
        """Unit noise ``(B, C, h, w)``, a generator a seed: a seed means the same noise in any batch, on any device.

        Args:
            seeds: One a picture.
            size: Height and width in pixels; the model's own by default.
        """
        shape = self.latent_shape(size)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn).to(self.device, self.dtype)

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
        """The frozen weights' precision, read off a word table, which no method edits."""
        return self.word_tables()[0].dtype

    @property
    def dtype(self) -> torch.dtype:
        """Precision of latents, text states and predictions: the base's, float32 at least."""
        return torch.promote_types(self.base, torch.float32)
