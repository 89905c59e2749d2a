"""`ErasureModule`, base of every method: the edited model, its frozen original, the edit."""

from abc import ABC
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.eight_bit import refuse_sharding, store_in_eight_bits
from erasure_lightning.backbones.interface import Capability, TextInput
from erasure_lightning.backbones.loading import WeightsToRead, load_backbone
from erasure_lightning.backbones.lora_files import fuse_loras
from erasure_lightning.backbones.precision import (
    BaseDtype,
    arithmetic_dtype,
    in_precision,
    promote_to_float32,
)
from erasure_lightning.checks import require_finite, require_seed
from erasure_lightning.concepts.concept import Concept, Concepts, PromptBatch, check_concepts
from erasure_lightning.concepts.files import as_concepts
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.data.concept_prompts import ConceptPrompts
from erasure_lightning.data.datamodule import Draws
from erasure_lightning.distributed.collectives import all_gather_items
from erasure_lightning.distributed.fsdp import copy_into, full_tensor
from erasure_lightning.edits.edit import StoredEdit
from erasure_lightning.edits.format import plain_values
from erasure_lightning.files.arguments import require_choices
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.backbone_checks import check_backbone, require_backbone_name
from erasure_lightning.training.base_edits import (
    base_edit_files,
    check_base_edits,
    edited_parts,
    edits_beneath,
    install_base_edits,
    unedited_copy,
)
from erasure_lightning.training.edit_state import (
    BACKBONE_PREFIX,
    backbone_state,
    check_base_model,
    complete_weights,
    reduce_to_edit,
)
from erasure_lightning.training.paired_sampling import PairedSampling
from erasure_lightning.training.retention_term import RetentionTerm
from erasure_lightning.training.sharded_module import shard_module

_version = cache(version)  # it reads a file


class ErasureModule(PairedSampling, ABC):
    """Base of every method: a text-to-image model that is edited, beside its frozen original.

    Args:
        concepts: Concepts to erase, or a CSV, YAML or text file of them (`read_concepts`).
        backbone: A name or place of a model (`load_backbone`), or a `Backbone`.
        loras: LoRA files that are fused into a loaded model first (`fuse_loras`).
        seed: Seed of every random draw of the run.
        base_dtype: Precision of frozen weights and of the arithmetic; the edit stays float32.
            ``int8``: ``bfloat16`` with unedited linear layers in 8 bits (`EightBitLinear`).
        checkpointing: Whether blocks are computed again in the backward pass, which saves memory.
        image_size: Side of all images in pixels; the model's own by default.
        base_edit: Runs or files of edits that the model has before training, the lowest first.

    Raises:
        ErasureError: If there are no concepts, their file or a base edit cannot be read, one is
            named twice, the world does not know one, or an argument is NaN, infinite or no choice.
    """

    #: Whether a step may leave some trainable parameters without a gradient, which DDP must know.
    has_unused = False
    #: Whether the edit is computed in ``on_train_end``, from a model unlike it.
    finalizes_edit = False
    #: Capabilities of a model family that the method uses beyond predictions.
    needs: ClassVar[frozenset[Capability]] = frozenset()
    #: Retention callbacks that belong to the method in its paper, by class name.
    default_retention: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        concepts: Concepts | list[Concept] | str,
        backbone: str | Backbone,
        loras: list[str] | None = None,
        seed: int = 0,
        base_dtype: BaseDtype = "float32",
        checkpointing: bool = False,
        image_size: int | None = None,
        base_edit: str | list[str] | None = None,
    ) -> None:
        super().__init__()
        concepts = as_concepts(concepts)
        check_concepts(concepts, type(self).__name__)
        require_seed(type(self).__name__, seed=seed)
        require_backbone_name(backbone, base_dtype, loras)
        ignored = [] if isinstance(backbone, str) else ["backbone"]
        self.save_hyperparameters(ignore=ignored, logger=False)
        require_finite(type(self).__name__, self.hparams)
        require_choices(type(self), self.hparams)
        # Values in place of the file's name: the file may be gone when the edit is used.
        self.hparams["concepts"] = [asdict(concept) for concept in concepts]
        self.concepts = concepts
        self.seed = seed
        self.base_dtype = base_dtype
        self.checkpointing = checkpointing
        self.image_size = image_size
        self.base_edit_files = base_edit_files(base_edit)
        self.strict_loading = False
        #: Retention callbacks, which add themselves at the beginning of a fit.
        self.retention: list[RetentionTerm] = []
        #: Sentences with ``{}`` for the concept; by default those of the vocabulary.
        self.prompt_templates: list[str] | None = None
        self._prompts: ConceptPrompts | None = None
        #: Hashes of the original in bfloat16, and of each of its components that is modified.
        self.rounded = ""
        self.fingerprints: dict[str, dict[str, str]] = {}
        # In a tuple: an assigned module would be a submodule before `configure_model` makes it one.
        self._source = (backbone,)

    def editable(self) -> dict[str, nn.Parameter]:
        """What is saved, by name in the backbone; by default weights of the text layers."""
        layers = self.backbone.text_layers().items()
        return {f"{name}.weight": cast(nn.Parameter, layer.weight) for name, layer in layers}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that the optimizer updates; by default all of `editable`."""
        return self.editable()

    def modified(self) -> Collection[str]:
        """Names in the backbone of parameters that change and modules that `adapt` replaces."""
        return self.editable()

    def in_float32(self) -> dict[str, nn.Parameter]:
        """Parameters that are float32 whatever `base_dtype` is; by default all that is edited."""
        return self.editable() | self.trainable()

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
        refuse_sharding(self.base_dtype, mesh is not None)
        reads_denoiser = mesh is None or self.global_rank == 0
        # On the CPU, from which Lightning moves the module: in its own context parts would be on
        # the device and others not. Where that is the CPU a second one would only be slower.
        is_there = torch.get_default_device().type == "cpu"
        with nullcontext() if is_there else torch.device("cpu"):
            self._load("all" if reads_denoiser else "text encoders")
            # Adapters begin alike on every rank and in every start.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self.seed, 5))
                self.adapt()
            if self.base_dtype == "int8":
                store_in_eight_bits(self.backbone, self.editable())
        promote_to_float32(self.in_float32().values())
        if self.checkpointing:
            self.backbone.checkpoint()
        for parameter in self.trainable().values():
            parameter.requires_grad_(True)
        if mesh is not None:
            hashes = all_gather_items([(self.fingerprint, self.rounded, self.fingerprints)])[0]
            self.fingerprint, self.rounded, self.fingerprints = hashes
            trained = {} if self.replicates_trainable() else self.trainable()
            shard_module(self, self.backbone, trained, mesh["data_parallel"])

    def _load(self, weights: WeightsToRead) -> None:
        """Load the backbone, copy its original, and take fingerprints of what was read."""
        (source,) = self._source
        dtype = arithmetic_dtype(self.base_dtype)
        if isinstance(source, str):
            self.backbone = load_backbone(source, dtype, weights)
            fuse_loras(self.backbone, self.hparams["loras"] or ())
        else:
            self.backbone = in_precision(source, dtype)
        self.backbone.size = self.image_size
        check_backbone(self.backbone, self.concepts, self.needs, type(self).__name__)
        install_base_edits(self.backbone, self.base_edit_files, self._device_mesh is not None)
        self.base_edits = edits_beneath(self.backbone)
        modified = self.modified()
        self.original = self.backbone.frozen_copy(modified)
        if self.base_edits:
            self._unedited = unedited_copy(self.original)
        if weights == "all":
            hashes = self.original.rounded_fingerprints([None, torch.bfloat16])
            self.fingerprint, self.rounded = hashes
            self._unedited_print = self.unedited.fingerprint() if self.base_edits else ""
            beneath = edited_parts(self.backbone, self.base_edits)
            self.fingerprints = self.original.fingerprints([*modified, *beneath])

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
            StoredEdit(values, self.description() | metadata).save(path)

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
        settings = (self.prompt_templates, self.global_rank)
        if self._prompts is None or (self._prompts.templates, self._prompts.rank) != settings:
            vocabulary = Vocabulary(self.backbone.world, self.concepts)
            templates, rank = settings
            self._prompts = ConceptPrompts(self.concepts, vocabulary, templates, self.seed, rank)
        return self._prompts

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
        beneath = {"base_edits": self.base_edits, "unedited_fingerprint": self.unedited_fingerprint}
        return {
            "method": f"{cls.__module__}.{cls.__qualname__}",
            "arguments": self.arguments(),
            "concepts": [asdict(c) for c in self.concepts],
            "backbone": self.backbone.name,
            "backbone_fingerprint": self.fingerprint,
            "backbone_bfloat16": self.rounded,
            "fingerprints": self.fingerprints,
            "seed": self.seed,
            "versions": {name: _version(name) for name in packages},
        } | (beneath if self.base_edits else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reduce a checkpoint to the edit and plain values, which are read without running code."""
        reduce_to_edit(checkpoint, self, self.edit_values())
        checkpoint["hyper_parameters"] = self.arguments()
        checkpoint["erasure"] = self.description()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint or an edit is of this model; names become the backbone's.

        Raises:
            ErasureError: If it edits other parameters, or another base model.
        """
        component = self.backbone.component_name
        editable = self.editable()
        names = {BACKBONE_PREFIX + component(n): BACKBONE_PREFIX + n for n in editable}
        state = backbone_state(checkpoint["state_dict"], names, editable, type(self).__name__)
        complete_weights(checkpoint, self, state)
        metadata = checkpoint.get("erasure", {})
        check_base_edits(metadata, self.base_edits)
        check_base_model(metadata, self.backbone.name, self.fingerprint, self.rounded)

    def retention_gram(self, source: TextInput) -> Tensor:
        """``sum_j w_j p_j p_j^T`` ``(D, D)``, float64, of inputs whose outputs are retained."""
        size = (source.width, source.width)
        gram = torch.zeros(size, dtype=torch.float64, device=self.backbone.device)
        held = [c.weight * c.gram(self, source) for c in self.retention if not c.of_states]
        return torch.stack([gram, *held]).sum(dim=0)
