"""`Backbone`: the one interface to a text-to-image model, whatever its family."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.checkpointing import checkpoint_blocks
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import FamilyInterface, Part, Size
from erasure_lightning.backbones.offloaded_text import OffloadedText
from erasure_lightning.backbones.process import NoiseProcess
from erasure_lightning.backbones.structural_copy import copy_along
from erasure_lightning.backbones.text_cache import TextCache, encoders_version
from erasure_lightning.backbones.towers import EmbeddedPrompts, TextTower
from erasure_lightning.concepts.concept import Phrase
from erasure_lightning.concepts.worlds import World
from erasure_lightning.distributed.collectives import all_gather_items
from erasure_lightning.edits.components import component_fingerprints
from erasure_lightning.edits.fingerprints import hash_tensors
from erasure_lightning.edits.format import plain_name
from erasure_lightning.errors import ErasureError


class Backbone(FamilyInterface):
    """A text-to-image model taken apart: text towers, denoiser, autoencoder, noise process.

    A family implements `FamilyInterface`; no code outside this folder depends on the family.

    Args:
        name: The user's name for it: a world, a folder or a Hub id.
        denoiser: UNet or transformer that predicts in the process's native form.
        towers: One, two or three text towers, in the order in which their states are joined.
        process: How latents are noised and what the denoiser predicts.
        world: The world it came from, where it came from one.
    """

    #: Whether weights are sharded over ranks, so that all ranks must run the model together.
    sharded = False

    def __init__(
        self,
        *,
        name: str,
        denoiser: nn.Module,
        towers: Sequence[TextTower],
        process: NoiseProcess,
        world: World | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.denoiser = denoiser
        self.text_encoders = nn.ModuleList(towers)
        self.process = process
        self.world = world
        #: Height and width in pixels of images whose size is not given; None for the model's own.
        self.size: Size | None = None
        self._text_cache = TextCache(self.text_encoders)
        self._offloaded: OffloadedText | None = None

    @property
    def towers(self) -> list[TextTower]:
        """The text towers."""
        return [cast(TextTower, tower) for tower in self.text_encoders]

    def text_layers(self) -> dict[str, nn.Linear]:
        """The linear layers that read text tokens directly, by their names in this backbone."""
        return self.text_inputs()[0].layers

    def _entry_layers(self) -> dict[str, nn.Linear]:
        """All layers that read the prompt alone."""
        return {name: layer for entry in self.text_inputs() for name, layer in entry.layers.items()}

    def text_parameters(self, blocks: int | None = None) -> dict[str, nn.Parameter]:
        """Parameters of the text towers' blocks and norms, without token and position tables.

        Args:
            blocks: Number of blocks of each tower, counted backwards from the layer whose output
                the denoiser reads; all by default.
        """
        each = [tower.read_parameters(blocks) for tower in self.towers]
        return {f"text_encoders.{i}.{n}": p for i, own in enumerate(each) for n, p in own.items()}

    @staticmethod
    def edits_text(names: Collection[str]) -> bool:
        """Whether any of these parameters belongs to a text tower."""
        return any(name.startswith("text_encoders.") for name in names)

    @staticmethod
    def edits_denoiser(names: Collection[str]) -> bool:
        """Whether any of these parameters belongs to the denoiser."""
        return any(name.startswith("denoiser.") for name in names)

    def denoiser_parameters(self, part: Part = "all") -> dict[str, nn.Parameter]:
        """Parameters of the denoiser, or of a part of it, by name in this backbone."""
        if part == "x":
            return self.cross_attention_parameters()
        if part == "pixels":
            return self.pixel_attention_parameters()
        if part in ("x-strict", "entry"):
            layers = self.text_attention() if part == "x-strict" else self._entry_layers()
            return {
                f"{layer}.{name}": parameter
                for layer, module in layers.items()
                for name, parameter in module.named_parameters()
            }
        cross = self.cross_attention_parameters() if part == "u" else {}
        named = ((f"denoiser.{name}", p) for name, p in self.denoiser.named_parameters())
        return {name: parameter for name, parameter in named if name not in cross}

    def embed(self, prompts: Sequence[str | Phrase]) -> tuple[EmbeddedPrompts, ...]:
        """Looks up the token embeddings of prompts, padded to full length, for each tower.

        Raises:
            ErasureError: If a concept's words fall behind a tower's last position.
        """
        return tuple(tower.embed(prompts, self.dtype).to(self.device) for tower in self.towers)

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Prompts that are truncated by a text tower."""
        cut = {prompt for tower in self.towers for prompt in tower.too_long(prompts)}
        return [prompt for prompt in prompts if prompt in cut]

    def contextualize(self, prompts: Sequence[EmbeddedPrompts]) -> Conditioning:
        """Runs the text towers on input embeddings, one record per tower.

        Raises:
            ErasureError: If a gradient is to flow through towers that are offloaded.
        """
        if self._offloaded and any(each.embeddings.requires_grad for each in prompts):
            raise ErasureError(
                f"Gradients through the text encoders of {self.name} need them on {self.device};"
                " found them offloaded. Leave offload_text false."
            )
        with self._text_on_device(), self.computing():
            outputs = [tower.encode(e) for tower, e in zip(self.towers, prompts, strict=True)]
        return self.join(prompts, [output.to(self.dtype) for output in outputs])

    def encode(self, prompts: Sequence[str | Phrase]) -> Conditioning:
        """Encodes prompts, tokens ``(B, L, D)``; frozen text towers encode each prompt once."""

        def encode(batch: Sequence[str | Phrase]) -> Conditioning:
            return self.contextualize(self.embed(batch))

        # Moved weights look like other weights.
        version = "offloaded" if self._offloaded else encoders_version(self.text_encoders)
        if version is None:
            return encode(prompts)
        encoded = self._text_cache.encode(prompts, version, encode, self._text_on_device)
        return Conditioning.stack(encoded)

    def offload_text(self) -> None:
        """Keeps the frozen text towers on the CPU except while they encode prompts.

        What they encoded stays in the cache. No gradient can flow through them.
        """
        self._offloaded = OffloadedText(self.text_encoders, self.denoiser, self.sharded)

    def _text_on_device(self) -> AbstractContextManager[None]:
        return nullcontext() if self._offloaded is None else self._offloaded.on_device()

    def unconditional(self, count: int = 1) -> Conditioning:
        """The conditioning of unconditional predictions, for a batch of ``count``.

        The empty prompt's, pooled vector included, unless the family's pipeline has another.
        """
        return self.encode([""]).expand(count)

    def summarize(self, prompts: Sequence[EmbeddedPrompts]) -> Tensor:
        """Vectors ``(B, S)`` whose cosines measure similarity of meaning."""
        return self.contextualize(self.shortened(prompts)).summary

    def shortened(self, prompts: Sequence[EmbeddedPrompts]) -> tuple[EmbeddedPrompts, ...]:
        """The prompts without padding, where all towers are causal and need none."""
        if not all(tower.causal for tower in self.towers):
            return tuple(prompts)
        length = 1 + max(int(embedded.ends.max()) for embedded in prompts)
        return tuple(embedded.truncated(length) for embedded in prompts)

    def word_tables(self) -> tuple[Tensor, ...]:
        """The frozen token embeddings ``(V, E)`` of each text tower."""
        return tuple(tower.table for tower in self.towers)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens in the vocabulary that the text towers share."""
        return len(self.word_tables()[0])

    def words(self) -> Tensor:
        """Ids ``(W,)`` of the tokens that are whole words: their text has the same tokens."""
        return self.towers[0].words()

    def spell(self, ids: Tensor) -> str:
        """The text of token ids ``(N,)`` of the vocabulary."""
        return self.towers[0].spell(ids)

    def noise(self, seeds: Sequence[int], size: Size | None = None) -> Tensor:
        """Gaussian noise ``(B, C, h, w)``, the same for a seed in any batch and on any device.

        Args:
            seeds: One per image.
            size: Height and width in pixels; the model's own by default.
        """
        shape = self.latent_shape(size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return noise.to(self.device, self.dtype)

    def save(self, folder: str | Path) -> None:
        """Writes a diffusers pipeline folder with the current weights."""
        self.to_pipeline().save_pretrained(folder)

    def frozen_copy(self, edited: Collection[str]) -> Self:
        """A frozen backbone with the current weights, which does not change with ``edited`` here.

        Only the edited parameters and the modules on the path to them are copied; everything else
        is shared, so the cost is one more copy of what is edited.

        Args:
            edited: Names of parameters, or of modules that will be replaced (adapters).
        """
        frozen = copy_along(self, {tuple(name.split(".")) for name in edited})
        if frozen.text_encoders is not self.text_encoders:
            frozen._text_cache = TextCache(frozen.text_encoders)
        return frozen

    def fingerprint(self) -> str:
        """A short hash of the weights."""
        return self.rounded_fingerprints([None])[0]

    def rounded_fingerprints(self, dtypes: Sequence[torch.dtype | None]) -> list[str]:
        """A hash of the weights rounded to each of ``dtypes``, None for their own precision."""
        return hash_tensors(self.state_dict(), dtypes)

    @classmethod
    def part_of(cls, name: str) -> str:
        """The key of `components` for a parameter or module, given its name in this backbone."""
        return max((part for part in cls.components if name.startswith(f"{part}.")), key=len)

    @classmethod
    def component_name(cls, name: str) -> str:
        """A parameter's name in an edit file: the pipeline's component and the name inside it."""
        part = cls.part_of(name)
        return f"{cls.components[part]}.{plain_name(name.removeprefix(f'{part}.'))}"

    def fingerprints(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        """`component_fingerprints` of the pipeline's components that hold parameters or modules.

        Args:
            names: Names of parameters or modules in this backbone.
        """
        parts = sorted({self.part_of(name) for name in names})
        hashes = [component_fingerprints(self.get_submodule(part)) for part in parts]
        return dict(zip((self.components[part] for part in parts), hashes, strict=True))

    def checkpoint(self) -> None:
        """Turns on gradient checkpointing for the blocks of the denoiser and the text towers."""
        checkpoint_blocks(self.denoiser, self.text_encoders)

    def computing(self) -> AbstractContextManager[object]:
        """Autocast to frozen weights in bfloat16 or float16; edited ones and inputs are float32."""
        low = self.base_dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.base_dtype) if low else nullcontext()

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank if the model is sharded, else this rank's flag.

        A forward of a sharded model is a collective: whether it runs must be decided by all ranks,
        or some wait for the others forever.
        """
        return any(all_gather_items([flag])) if self.sharded else flag

    @property
    def device(self) -> torch.device:
        """Device of the text encoders; the denoiser may still be on the meta device."""
        if self._offloaded is not None and self._offloaded.is_away:
            return next(self.denoiser.parameters()).device
        return next(self.text_encoders.parameters()).device

    @property
    def base_dtype(self) -> torch.dtype:
        """Precision of the frozen weights, that of the token embeddings, which no method edits."""
        return self.word_tables()[0].dtype

    @property
    def dtype(self) -> torch.dtype:
        """Precision of latents, text states and predictions: `base_dtype`, at least float32."""
        return torch.promote_types(self.base_dtype, torch.float32)
