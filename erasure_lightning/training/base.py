"""`ErasureModule`, base of every method: the edited model, its frozen original, the edit."""

from abc import ABC
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.interface import Capability, TextInput
from erasure_lightning.backbones.loading import WeightsToRead, load_backbone
from erasure_lightning.backbones.precision import promote_to_float32
from erasure_lightning.checks import require_finite, require_seed
from erasure_lightning.concepts.concept import Concept, Concepts, PromptBatch, check_concepts
from erasure_lightning.concepts.files import read_concepts
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.data.concept_prompts import ConceptPrompts
from erasure_lightning.data.datamodule import Draws
from erasure_lightning.data.image_cache import cached_images
from erasure_lightning.data.image_plan import ImageBatch
from erasure_lightning.distributed.collectives import all_gather_items
from erasure_lightning.distributed.fsdp import copy_into, full_tensor
from erasure_lightning.edits.edit import plain_values, write_edit
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.backbone_checks import check_backbone
from erasure_lightning.training.batch_sampling import finite_images
from erasure_lightning.training.edit_state import (
    BACKBONE_PREFIX,
    backbone_state,
    check_base_model,
)
from erasure_lightning.training.retention_term import RetentionTerm
from erasure_lightning.training.sharded_module import shard_module


class ErasureModule(LightningModule, ABC):
    """Base of every method: a text-to-image model that is edited, beside its frozen original.

    Args:
        concepts: Concepts to erase, or a CSV, YAML or text file of them (`read_concepts`).
        backbone: A world's name, a diffusers folder, a Hub id, or a `Backbone`.
        seed: Seed of every random draw of the run.
        base: Precision of the frozen weights and of the arithmetic; the edit stays float32.
        checkpointing: Whether blocks are computed again in the backward pass, which saves memory.
        image_size: Side of all images in pixels; the model's own by default.

    Raises:
        ErasureError: If there are no concepts, their file cannot be read, one is named twice, the
            world does not know one, or an argument of the method is NaN, infinite, or no seed.
    """

    #: Whether a step may leave some trainable parameters without a gradient, which DDP must know.
    has_unused = False
    #: Whether the edit is computed in ``on_train_end``, from a model that differs from it.
    finalizes_edit = False
    #: Capabilities of a model family that the method uses beyond predictions.
    needs: ClassVar[frozenset[Capability]] = frozenset()
    #: Retention callbacks that belong to the method in its paper, by class name.
    default_retention: ClassVar[tuple[str, ...]] = ()
    #: The edited model and its frozen original; set by `configure_model`.
    backbone: Backbone
    original: Backbone

    def __init__(
        self,
        *,
        concepts: Concepts | list[Concept] | str,
        backbone: str | Backbone = "emoji-world",
        seed: int = 0,
        base: Literal["float32", "bfloat16"] = "float32",
        checkpointing: bool = False,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(concepts, str):
            concepts = read_concepts(Path(concepts))
        elif isinstance(concepts, Concepts):
            concepts = list(concepts.listed)
        check_concepts(concepts, type(self).__name__)
        require_seed(type(self).__name__, seed=seed)
        ignored = [] if isinstance(backbone, str) else ["backbone"]
        self.save_hyperparameters(ignore=ignored, logger=False)
        require_finite(type(self).__name__, self.hparams)
        # Values in place of the file's name: the file may be gone when the edit is used.
        self.hparams["concepts"] = [asdict(concept) for concept in concepts]
        self.concepts = concepts
        self.seed = seed
        self.base = base
        self.checkpointing = checkpointing
        self.image_size = image_size
        self.strict_loading = False
        #: Retention callbacks, which add themselves at the beginning of a fit.
        self.retention: list[RetentionTerm] = []
        #: Sentences with ``{}`` for the concept; by default those of the vocabulary.
        self.prompt_templates: list[str] | None = None
        #: Folder that keeps the original model's images from one run to the next.
        self.originals: str | None = None
        self._prompts: ConceptPrompts | None = None
        #: Hashes of the original: its own, in bfloat16, and of each component that is modified.
        self.fingerprint = ""
        self.rounded = ""
        self.fingerprints: dict[str, dict[str, str]] = {}
        # In a tuple: an assigned module would be a submodule before `configure_model` makes it one.
        self._source = (backbone,)

    def editable(self) -> dict[str, nn.Parameter]:
        """Parameters that may change and are saved, by name in the backbone.

        By default the weights of the denoiser's text layers.
        """
        layers = self.backbone.text_layers().items()
        return {f"{name}.weight": cast(nn.Parameter, layer.weight) for name, layer in layers}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that the optimizer updates; by default all of `editable`."""
        return self.editable()

    def modified(self) -> Collection[str]:
        """Names in the backbone of parameters that change and modules that `adapt` replaces."""
        return self.editable()

    def adapt(self) -> None:
        """Add the method's own modules to the backbone, after its original was copied."""

    def replicates_trainable(self) -> bool:
        """Whether `trainable` stays whole on every rank under a sharding strategy.

        By default that of closed forms does: they have no optimizer state to shard.
        """
        return not self.automatic_optimization

    def configure_model(self) -> None:
        """Load the backbone and copy its original; called before a checkpoint is loaded."""
        if "backbone" in self._modules:
            return
        mesh = self._device_mesh
        reads_denoiser = mesh is None or self.global_rank == 0
        # On the CPU, from which Lightning moves the module: in its own context parts would be on
        # the device and others not.
        with torch.device("cpu"):
            self._load("all" if reads_denoiser else "text encoders")
            # Adapters begin alike on every rank and in every start.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self.seed, 5))
                self.adapt()
        promote_to_float32((self.editable() | self.trainable()).values())
        if self.checkpointing:
            self.backbone.checkpoint()
        for parameter in self.trainable().values():
            parameter.requires_grad_(True)
        if mesh is not None:
            prints = all_gather_items([(self.fingerprint, self.rounded, self.fingerprints)])[0]
            self.fingerprint, self.rounded, self.fingerprints = prints
            trained = {} if self.replicates_trainable() else self.trainable()
            shard_module(self, self.backbone, trained, mesh["data_parallel"])

    def _load(self, weights: WeightsToRead) -> None:
        """Load the backbone, copy its original, and take fingerprints of what was read."""
        (source,) = self._source
        dtype = torch.bfloat16 if self.base == "bfloat16" else torch.float32
        if isinstance(source, str):
            self.backbone = load_backbone(source, dtype, weights)
        else:
            self.backbone = source.to(dtype)
        self.backbone.size = self.image_size
        check_backbone(self.backbone, self.concepts, self.needs, type(self).__name__)
        modified = self.modified()
        self.original = self.backbone.frozen_copy(modified)
        if weights == "all":
            self.fingerprint = self.original.fingerprint()
            self.rounded = self.original.fingerprint(torch.bfloat16)
            self.fingerprints = self.original.fingerprints(modified)

    def edit_values(self) -> dict[str, Tensor]:
        """Full values of everything `editable`, on the CPU; every rank must call it if sharded."""
        return {name: full_tensor(parameter) for name, parameter in self.editable().items()}

    def save_edit(self, path: Path, **metadata: Any) -> None:
        """Write the edit as a file, on rank 0; every rank must call it if weights are sharded.

        Args:
            path: The file, which is replaced atomically.
            metadata: Entries beside those of `description`.
        """
        name = self.backbone.component_name
        values = {name(key): value for key, value in self.edit_values().items()}
        if self.global_rank == 0:
            write_edit(path, values, self.description() | metadata)

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into parameters of the backbone; every rank must call it if sharded.

        Args:
            values: By name in the backbone.
        """
        for name, value in values.items():
            copy_into(self.backbone.get_parameter(name), value)

    @property
    def prompts(self) -> ConceptPrompts:
        """The sentences that the concepts are trained in."""
        prompts, settings = self._prompts, (self.prompt_templates, self.global_rank)
        if prompts is None or (prompts.templates, prompts.rank) != settings:
            vocabulary = Vocabulary(self.backbone.world, self.concepts)
            templates, rank = settings
            prompts = ConceptPrompts(self.concepts, vocabulary, templates, self.seed, rank)
            self._prompts = prompts
        return prompts

    def train_dataloader(self) -> Draws[PromptBatch]:
        """Batches of four concept prompts, for a trainer without a datamodule."""
        length = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return Draws(partial(self.prompts.batch, 4, salt=1), length if length > 0 else 1000)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor as plain values."""
        public = {key: value for key, value in self.hparams.items() if not key.startswith("_")}
        (source,) = self._source
        name = source if isinstance(source, str) else source.name
        return {key: plain_values(value) for key, value in public.items()} | {"backbone": name}

    def description(self) -> dict[str, Any]:
        """Metadata of an edit: method, arguments, concepts, base model, seed and versions."""
        cls = type(self)
        packages = ("erasure-lightning", "torch", "diffusers", "transformers")
        return {
            "method": f"{cls.__module__}.{cls.__qualname__}",
            "arguments": self.arguments(),
            "concepts": [asdict(c) for c in self.concepts],
            "backbone": self.backbone.name,
            "backbone_fingerprint": self.fingerprint,
            "backbone_bfloat16": self.rounded,
            "fingerprints": self.fingerprints,
            "seed": self.seed,
            "versions": {name: version(name) for name in packages},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reduce a checkpoint to the edit and plain values, which are read without running code."""
        values = self.edit_values()
        checkpoint["state_dict"] = {BACKBONE_PREFIX + name: v for name, v in values.items()}
        checkpoint["hyper_parameters"] = self.arguments()
        checkpoint["erasure"] = self.description()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint or an edit is of this model; names become the backbone's.

        Raises:
            ErasureError: If it edits other parameters, or another base model.
        """
        component = self.backbone.component_name
        names = {BACKBONE_PREFIX + component(n): BACKBONE_PREFIX + n for n in self.editable()}
        state = backbone_state(checkpoint["state_dict"], names, type(self).__name__)
        checkpoint["state_dict"] = state
        metadata = checkpoint.get("erasure", {})
        check_base_model(metadata, self.backbone.name, self.fingerprint, self.rounded)

    def retention_gram(self, source: TextInput) -> Tensor:
        """``sum_j w_j p_j p_j^T`` ``(D, D)``, float64, of inputs that retention callbacks hold."""
        size = (source.width, source.width)
        gram = torch.zeros(size, dtype=torch.float64, device=self.backbone.device)
        held = [c.weight * c.gram(self, source) for c in self.retention if not c.of_states]
        return torch.stack([gram, *held]).sum(dim=0)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """Sample images of prompts from the original and the edited model, from equal noise.

        Returns:
            Images ``(B, 3, H, W)`` in 0..1, by ``original`` and ``edited``.

        Raises:
            ErasureError: If an image holds NaN or infinity.
        """
        key = f"{self.fingerprint} {self.original.sampling_fingerprint}"
        original = cached_images(
            self.originals,
            key,
            batch,
            partial(finite_images, self.original, batch, "original"),
            self.original.any_rank,
        )
        edited = finite_images(self.backbone, batch, "edited")
        return {"original": original.to(self.device), "edited": edited}

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """`test_step` on the smaller plan of ``validate``."""
        return self.test_step(batch, batch_idx)

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """`test_step` on a user's prompts."""
        return self.test_step(batch, batch_idx)
