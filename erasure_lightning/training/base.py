"""`ErasureModule`: what every method is, however it edits: a model, its frozen original,
checkpoints of the edit.
"""

from abc import ABC
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

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
from erasure_lightning.diffusion.finite_images import require_finite_images
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.distributed.collectives import all_gather_items
from erasure_lightning.distributed.fsdp import (
    copy_into,
    full_tensor,
    scatter_weights,
    shard_weights,
)
from erasure_lightning.edits.edit import plain_values, write_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.regression import Regression

BACKBONE_PREFIX = "backbone."

#: Precisions in which a model is recognised: its own, and what it is rounded to as a base.
_KNOWN_BY = (None, torch.bfloat16)


class RetentionTerm(Protocol):
    """What a module asks of a retention callback."""

    #: Weight of the term, or of each retained prompt in a closed form.
    weight: float
    #: Whether it holds states of the text encoder alone.
    of_states: bool

    @property
    def label(self) -> str:
        """Name of the term in logs, different for each callback of a module."""

    def weight_at(self, step: int) -> float:
        """Weight of the term at a step."""

    def term(self, module: Any) -> Tensor:
        """The unweighted term, a scalar."""

    def gram(self, module: Any, source: TextInput) -> Tensor:
        """What a closed form must hold, ``(D, D)`` in float64."""


class ErasureModule(LightningModule, ABC):
    """A text-to-image model that is made to forget; the base of every method.

    Args:
        concepts: What must be forgotten: concepts, or a CSV, YAML or text file of them
            (`read_concepts`).
        backbone: A world's name, a diffusers folder, a Hub id, or a `Backbone`.
        seed: Of everything the run draws.
        base: Precision of the frozen weights, and of the arithmetic; what is edited stays float32.
        checkpointing: Compute again in the backward what blocks computed in the forward: less
            memory, more time.

    Raises:
        ErasureError: If there are no concepts, their file cannot be read, one is named twice, the
            world does not know one, or an argument of the method is NaN, infinite, or no seed.
    """

    #: Whether some of what is trained may have no gradient in a step, which DDP must be told.
    has_unused = False
    #: Whether the edit is made when training ends, of something else than the model that is
    #: trained.
    finalizes_edit = False
    #: What the method asks of a model family beyond predictions; a family without it is refused
    #: before training.
    needs: ClassVar[frozenset[Capability]] = frozenset()
    #: Retention callbacks that belong to the method in its paper, by class name.
    default_retention: ClassVar[tuple[str, ...]] = ()
    #: The model being edited and its frozen original; both are there once Lightning has called
    #: `configure_model`.
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
    ) -> None:
        super().__init__()
        if not isinstance(concepts, list):
            concepts = (
                read_concepts(Path(concepts))
                if isinstance(concepts, str)
                else list(concepts.listed)
            )
        check_concepts(concepts, type(self).__name__)
        require_seed(type(self).__name__, seed=seed)
        self.save_hyperparameters(
            ignore=[] if isinstance(backbone, str) else ["backbone"], logger=False
        )
        require_finite(type(self).__name__, self.hparams)
        self.hparams["concepts"] = [
            asdict(c) for c in concepts
        ]  # the file may be gone when the edit is used
        self.concepts = concepts
        self.seed = seed
        self.base = base
        self.checkpointing = checkpointing
        self.strict_loading = False
        #: Retention callbacks, which add themselves at the beginning of a fit.
        self.retention: list[RetentionTerm] = []
        #: Sentences with ``{}`` for the concept; by default those of the vocabulary.
        self.prompt_templates: list[str] | None = None
        #: Folder that keeps the original model's images from one run to the next.
        self.originals: str | None = None
        self._prompts: ConceptPrompts | None = None
        # In a tuple, since a module that is assigned becomes a part, and parts are made in
        # configure_model.
        self._given = (backbone,)

    def editable(self) -> dict[str, nn.Parameter]:
        """What may change and is saved, by name in the backbone; by default the text layers'
        weights.
        """
        layers = self.backbone.text_layers()
        return {
            f"{name}.weight": cast(nn.Parameter, layer.weight) for name, layer in layers.items()
        }

    def trainable(self) -> dict[str, nn.Parameter]:
        """What of it an optimizer moves; by default all that is editable."""
        return self.editable()

    def modified(self) -> Collection[str]:
        """Parameters that will change, and modules that `adapt` will add or replace, by name in the
        backbone.
        """
        return self.editable()

    def adapt(self) -> None:
        """Put modules of the method's own into the backbone, once its original is safe; by default
        none.
        """

    def replicates_trainable(self) -> bool:
        """Whether what is trained is kept from being split over ranks, by a strategy that splits
        weights.

        By default that of closed forms is: they have no optimizer whose states would be worth it.
        """
        return not self.automatic_optimization

    def configure_model(self) -> None:
        """Load the backbone and keep its original; called before a checkpoint is restored, in every
        command.
        """
        if "backbone" in self._modules:
            return
        (given,), mesh = self._given, self._device_mesh
        empty = (
            mesh is not None and self.global_rank > 0
        )  # rank 0 alone reads the denoiser's weights
        with torch.device(
            "cpu"
        ):  # Lightning moves what was made, where its own context would put some of it elsewhere
            dtype = torch.bfloat16 if self.base == "bfloat16" else torch.float32
            read: WeightsToRead = "text encoders" if empty else "all"
            self.backbone = (
                load_backbone(given, dtype, read) if isinstance(given, str) else given.to(dtype)
            )
            self._check_world()
            self._check_capabilities()
            modified = self.modified()
            self.original = self.backbone.frozen_copy(modified)
            self.fingerprint, self.rounded = (
                "" if empty else self.original.fingerprint(d) for d in _KNOWN_BY
            )
            self.fingerprints = {} if empty else self.original.fingerprints(modified)
            with torch.random.fork_rng(
                devices=[]
            ):  # adapters begin alike on every rank and at every start
                torch.manual_seed(derive_seed(self.seed, 5))
                self.adapt()
        promote_to_float32((self.editable() | self.trainable()).values())
        if self.checkpointing:
            self.backbone.checkpoint()
        for parameter in self.trainable().values():
            parameter.requires_grad_(True)
        if mesh is not None:
            self._split(mesh["data_parallel"])

    def _split(self, mesh: DeviceMesh) -> None:
        """Share the weights out among ranks, which from now on must ask the model together."""
        self.fingerprint, self.rounded = all_gather_items([self.fingerprint, self.rounded])[:2]
        self.fingerprints = all_gather_items([self.fingerprints])[0]
        full = (
            {}
            if self.global_rank
            else {n: v.detach() for n, v in [*self.named_parameters(), *self.named_buffers()]}
        )
        models = [module for module in self.children() if isinstance(module, Backbone)]
        trained = {} if self.replicates_trainable() else self.trainable()
        shard_weights(
            self.backbone.denoiser,
            [m.denoiser for m in models if m is not self.backbone],
            mesh,
            trained,
        )
        towers = {
            name: parameter for name, parameter in trained.items() if Backbone.edits_text([name])
        }
        if towers:
            shard_weights(
                self.backbone.text_encoders,
                [m.text_encoders for m in models if m is not self.backbone],
                mesh,
                towers,
            )
        for model in models:
            model.sharded = True
        scatter_weights(self, full, self.trainer.strategy.root_device)

    def edit_values(self) -> dict[str, Tensor]:
        """The values of everything `editable`, whole, on the CPU; where weights are split, every
        rank must ask.
        """
        return {name: full_tensor(parameter) for name, parameter in self.editable().items()}

    def save_edit(self, path: Path, **metadata: Any) -> None:
        """Write the edit as a file, on rank 0; where weights are split, every rank must call it.

        Args:
            path: Where to; replaced atomically.
            metadata: What is kept with it beside the `description`.
        """
        values = {
            self.backbone.component_name(name): value for name, value in self.edit_values().items()
        }
        if self.global_rank == 0:
            write_edit(path, values, self.description() | metadata)

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Give weights of the backbone new values, by name; where weights are split, every rank
        must call it.
        """
        for name, value in values.items():
            copy_into(self.backbone.get_parameter(name), value)

    def _check_capabilities(self) -> None:
        if missing := sorted(self.needs - self.backbone.capabilities):
            raise ErasureError(
                f"{type(self).__name__} needs {' and '.join(missing)}, which"
                f" {type(self.backbone).__name__} does not have. `erasure methods` lists the"
                " others."
            )

    def _check_world(self) -> None:
        world = self.backbone.world
        unknown = [c.name for c in self.concepts if world is not None and not world.knows(c.name)]
        if world is not None and unknown:
            near = ", ".join(world.nearest(unknown[0])) or "see its labels.json"
            raise ErasureError(
                f"The world {world.name} does not know {unknown[0]!r}. Nearest: {near}."
            )

    @property
    def prompts(self) -> ConceptPrompts:
        """The sentences that the concepts are trained in."""
        prompts, settings = self._prompts, (self.prompt_templates, self.global_rank)
        if prompts is None or (prompts.templates, prompts.rank) != settings:
            vocabulary = Vocabulary(self.backbone.world, self.concepts)
            prompts = ConceptPrompts(
                self.concepts,
                vocabulary,
                self.prompt_templates,
                seed=self.seed,
                rank=self.global_rank,
            )
            self._prompts = prompts
        return prompts

    def train_dataloader(self) -> Draws[PromptBatch]:
        """Batches of four concept prompts, for a trainer that is given no datamodule."""
        length = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return Draws(partial(self.prompts.batch, 4, salt=1), length if length > 0 else 1000)

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        named = {
            key: plain_values(value)
            for key, value in self.hparams.items()
            if not key.startswith("_")
        }
        (given,) = self._given
        return named | {"backbone": given if isinstance(given, str) else given.name}

    def description(self) -> dict[str, Any]:
        """What an edit was made from: method, arguments, base model and versions."""
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
        """Keep the edit alone, and plain values only, so that the file can be read without running
        code.
        """
        checkpoint["state_dict"] = {
            BACKBONE_PREFIX + name: value for name, value in self.edit_values().items()
        }
        checkpoint["hyper_parameters"] = self.arguments()
        checkpoint["erasure"] = self.description()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse an edit of another model or of other parameters; names of an edit file become the
        backbone's.

        Raises:
            ErasureError: Naming what differs.
        """
        own = {
            BACKBONE_PREFIX + self.backbone.component_name(n): BACKBONE_PREFIX + n
            for n in self.editable()
        }
        checkpoint["state_dict"] = {
            own.get(n, n): value for n, value in checkpoint["state_dict"].items()
        }
        found, wanted = (
            set(checkpoint["state_dict"]),
            {BACKBONE_PREFIX + n for n in self.editable()},
        )
        if found != wanted:
            odd = sorted(found ^ wanted)
            raise ErasureError(
                f"{type(self).__name__} edits {len(wanted)} parameters as configured; the"
                f" checkpoint has {len(found)}. They differ in {len(odd)}, {odd[0]} first. Use the"
                " config the checkpoint was made with."
            )
        made = checkpoint.get("erasure", {})
        then = made.get("backbone_fingerprint")
        if (
            then not in (None, self.fingerprint, self.rounded)
            and made.get("backbone_bfloat16") != self.fingerprint
        ):
            raise ErasureError(
                f"The checkpoint edits a model with fingerprint {then}; {self.backbone.name} has"
                f" {self.fingerprint}."
            )

    def retention_gram(self, source: TextInput) -> Tensor:
        """``sum w p p^T`` of the inputs that retention callbacks hold, ``(D, D)`` in float64; else
        zeros.
        """
        size = (source.width, source.width)
        gram = torch.zeros(size, dtype=torch.float64, device=self.backbone.device)
        held = [c.weight * c.gram(self, source) for c in self.retention if not c.of_states]
        return torch.stack([gram, *held]).sum(dim=0)

    def solve_each(
        self, fill: Callable[[Regression, TextInput], None], ridge: float
    ) -> dict[str, Tensor]:
        """New weights of every text input of the original, each by normal equations of its own.

        Args:
            fill: Writes the method's terms into equations that hold what retention callbacks hold
                already.
            ridge: Pull towards the old weights, above 0.
        """
        solution: dict[str, Tensor] = {}
        for source in self.original.text_inputs():
            equations = Regression(self.retention_gram(source))
            fill(equations, source)
            solution |= source.named(equations.solve(source.weights(), ridge))
        return solution

    def test_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """Draw a batch of prompts with the original and the edited model from the same noise.

        Raises:
            ErasureError: If a picture of either holds NaN or infinity.
        """
        model = f"{self.fingerprint} {self.original.sampling_fingerprint}"
        before = cached_images(
            self.originals,
            model,
            batch,
            lambda: self._finite_pictures("original", batch),
            self.original.any_rank,
        )
        return {
            "original": before.to(self.device),
            "edited": self._finite_pictures("edited", batch),
        }

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """The same as `test_step`, on the smaller plan of ``validate``."""
        return self.test_step(batch, batch_idx)

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """The same as `test_step`, on a user's prompts."""
        return self.test_step(batch, batch_idx)

    def _finite_pictures(self, model: Literal["original", "edited"], shots: ImageBatch) -> Tensor:
        backbone = self.original if model == "original" else self.backbone
        return require_finite_images(self._draw(backbone, shots), model, backbone, shots.prompts)

    @staticmethod
    def _draw(backbone: Backbone, shots: ImageBatch) -> Tensor:
        return sample_images(
            backbone,
            shots.prompts,
            shots.seeds,
            steps=shots.steps,
            guidance=shots.guidance,
            size=shots.size,
        )
