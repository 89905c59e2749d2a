"""The seam: everything that depends on a model family lives behind `Backbone`."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.checkpointing import checkpoint_blocks
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import FamilyInterface, Part, Size
from erasure_lightning.backbones.process import NoiseProcess
from erasure_lightning.backbones.structural_copy import copy_along
from erasure_lightning.backbones.text_cache import TextCache, encoders_version
from erasure_lightning.backbones.towers import EmbeddedPrompts, TextTower
from erasure_lightning.concepts.concept import Phrase
from erasure_lightning.concepts.worlds import World
from erasure_lightning.distributed.collectives import all_gather_items
from erasure_lightning.edits.components import component_fingerprints
from erasure_lightning.edits.fingerprints import fingerprint
from erasure_lightning.edits.format import plain_name


class Backbone(FamilyInterface):
    """A text-to-image model taken apart: text towers, denoiser, autoencoder, noise process.

    A family implements `FamilyInterface`; nothing above this folder asks which family it is.

    Args:
        name: How the user named it: a world, a folder or a Hub id.
        denoiser: UNet or transformer that predicts in the process's native form.
        text_encoders: One, two or three text towers.
        process: How latents are noised and what the denoiser predicts.
        world: The world it came from, where it came from one.
    """

    #: Whether weights are split over ranks, so that all ranks must run each of them together.
    sharded = False

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
        self._states = TextCache()

    @property
    def towers(self) -> list[TextTower]:
        """The text towers."""
        return [cast(TextTower, tower) for tower in self.text_encoders]

    def text_layers(self) -> dict[str, nn.Linear]:
        """The linear layers that read text tokens directly, by their names in this backbone."""
        return self.text_inputs()[0].layers

    def text_parameters(self, blocks: int | None = None) -> dict[str, nn.Parameter]:
        """What the model's reading of text depends on: blocks and norms, not token and position
        tables.

        Args:
            blocks: Only so many blocks of each tower, counted from the layer that is read; all by
                default.
        """
        named: dict[str, nn.Parameter] = {}
        for number, tower in enumerate(self.towers):
            read = tower.read_parameters(blocks)
            named |= {
                f"text_encoders.{number}.{name}": parameter for name, parameter in read.items()
            }
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
            return {
                f"{layer}.{name}": p
                for layer, module in layers
                for name, p in module.named_parameters()
            }
        cross = self.cross_attention_parameters() if part == "u" else {}
        found = {
            f"denoiser.{name}": parameter for name, parameter in self.denoiser.named_parameters()
        }
        return {name: parameter for name, parameter in found.items() if name not in cross}

    def embed(self, prompts: Sequence[str | Phrase]) -> tuple[EmbeddedPrompts, ...]:
        """Look up the prompts' words, padded to each tower's full length: one record a tower.

        Raises:
            ErasureError: If a concept's words fall behind a tower's last position.
        """
        return tuple(tower.embed(prompts, self.dtype) for tower in self.towers)

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Those of the prompts of which a text tower reads the beginning only."""
        cut = {prompt for tower in self.towers for prompt in tower.too_long(prompts)}
        return [prompt for prompt in prompts if prompt in cut]

    def contextualize(self, prompts: Sequence[EmbeddedPrompts]) -> Conditioning:
        """Run the text towers on input embeddings, one record a tower."""
        with self.computing():
            outputs = [tower.encode(e) for tower, e in zip(self.towers, prompts, strict=True)]
        return self.join(prompts, [output.to(self.dtype) for output in outputs])

    def encode(self, prompts: Sequence[str | Phrase]) -> Conditioning:
        """What the denoiser reads of the prompts, ``(B, L, D)``; frozen text towers read each
        sentence once.
        """
        reader = encoders_version(self.text_encoders)
        if reader is None:
            return self.contextualize(self.embed(prompts))
        return Conditioning.stack(
            self._states.of(prompts, reader, lambda some: self.contextualize(self.embed(some)))
        )

    def unconditional(self, count: int = 1) -> Conditioning:
        """What the denoiser reads where classifier-free guidance asks for no prompt, for a batch of
        ``count``.

        The empty prompt, pooled vector included, unless the family's pipeline says otherwise.
        """
        return self.encode([""]).expand(count)

    def summarize(self, prompts: Sequence[EmbeddedPrompts]) -> Tensor:
        """What similarity of meaning is measured in, ``(B, S)``; causal towers read no further than
        they must.
        """
        return self.contextualize(self.shortened(prompts)).summary

    def shortened(self, prompts: Sequence[EmbeddedPrompts]) -> tuple[EmbeddedPrompts, ...]:
        """The prompts without the padding that no tower needs: causal towers give the same states
        before it.
        """
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
        """Unit noise ``(B, C, h, w)``, a generator a seed: a seed means the same noise in any
        batch, on any device.

        Args:
            seeds: One a picture.
            size: Height and width in pixels; the model's own by default.
        """
        shape = self.latent_shape(size)
        drawn = [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds
        ]
        return torch.stack(drawn).to(self.device, self.dtype)

    def save(self, folder: str | Path) -> None:
        """Write a diffusers pipeline folder that holds today's weights."""
        self.to_pipeline().save_pretrained(folder)

    def frozen_copy(self, edited: Collection[str]) -> Self:
        """A frozen backbone with today's weights that stays as it is when ``edited`` change here.

        Only modules on the way to an edited parameter are copied, and of their parameters only the
        edited; all else is the same object, so the cost is one more copy of what is edited.

        Args:
            edited: Names of parameters, or of modules that will be replaced (adapters).
        """
        twin = copy_along(self, {tuple(name.split(".")) for name in edited})
        if twin.text_encoders is not self.text_encoders:
            twin._states = TextCache()
        return twin

    def fingerprint(self, dtype: torch.dtype | None = None) -> str:
        """A short hash of the weights, or of what they would be when rounded to a precision."""
        return fingerprint(self, dtype)

    @classmethod
    def part_of(cls, name: str) -> str:
        """Which of the parts in `components` a parameter or module is in, by its name in this
        backbone.
        """
        return max((part for part in cls.components if name.startswith(f"{part}.")), key=len)

    @classmethod
    def component_name(cls, name: str) -> str:
        """A parameter's name in an edit file: the pipeline's component and its own name there."""
        part = cls.part_of(name)
        return f"{cls.components[part]}.{plain_name(name.removeprefix(f'{part}.'))}"

    def fingerprints(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        """The `component_fingerprints` of the pipeline's components that parameters or modules are in.

        Args:
            names: Of parameters or modules in this backbone.
        """
        parts = sorted({self.part_of(name) for name in names})
        return {
            self.components[part]: component_fingerprints(self.get_submodule(part))
            for part in parts
        }

    def checkpoint(self) -> None:
        """Keep only the inputs of blocks for the backward, which computes the rest again: less
        memory, more time.
        """
        checkpoint_blocks(self.denoiser, self.text_encoders)

    def computing(self) -> AbstractContextManager[object]:
        """While entered, layers compute in the base's precision, also where an edited weight or an
        input has more.
        """
        low = self.base in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.base) if low else nullcontext()

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is up on any rank, where ranks ask the model together; else this rank's
        own.

        What decides whether a split model runs must be decided by all ranks, or some wait for the
        others forever.
        """
        return any(all_gather_items([flag])) if self.sharded else flag

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
