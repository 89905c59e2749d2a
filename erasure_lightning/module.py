"""`ErasureModule` and its two shapes: methods that descend a gradient, and methods that solve in closed form."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from erasure_lightning.album import kept
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.bank import Drawn, Teacher, TrajectoryBank, pure_noise
from erasure_lightning.concept_files import read_concepts
from erasure_lightning.concepts import Batch, Concept, Phrase, check_concepts
from erasure_lightning.data import PromptData
from erasure_lightning.edits import plain
from erasure_lightning.errors import ErasureError
from erasure_lightning.functional import mix, warm_cosine, widen
from erasure_lightning.optimizers import Kind, make_optimizer
from erasure_lightning.ranks import averaged, gathered, own, spoken
from erasure_lightning.sampling import draw
from erasure_lightning.sharding import pour, put, split, whole
from erasure_lightning.shots import Shots

PREFIX = "backbone."

#: Precisions in which a model is recognised: its own, and what it is rounded to as a base.
_KNOWN_BY = (None, torch.bfloat16)


class ErasureModule(LightningModule, ABC):
    """A text-to-image model that is made to forget; the base of every method.

    Args:
        concepts: What must be forgotten: concepts, or a CSV, YAML or text file of them (`read_concepts`).
        backbone: A world's name, a diffusers folder, a Hub id, or a `Backbone`.
        seed: Of everything the run draws.
        base: Precision of the frozen weights, and of the arithmetic; what is edited stays float32.
        checkpointing: Compute again in the backward what blocks computed in the forward: less memory, more time.

    Raises:
        ErasureError: If there are no concepts, their file cannot be read, one is named twice, or the world does not
            know one.
    """

    #: Whether some of what is trained may have no gradient in a step, which DDP must be told.
    rests = False
    #: The model being edited and its frozen original; both are there once Lightning has called `configure_model`.
    backbone: Backbone
    original: Backbone

    def __init__(
        self,
        *,
        concepts: list[Concept] | str,
        backbone: str | Backbone = "emoji-world",
        seed: int = 0,
        base: Literal["float32", "bfloat16"] = "float32",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        concepts = read_concepts(Path(concepts)) if isinstance(concepts, str) else concepts
        check_concepts(concepts, type(self).__name__)
        self.save_hyperparameters(ignore=[] if isinstance(backbone, str) else ["backbone"], logger=False)
        self.hparams["concepts"] = [asdict(c) for c in concepts]  # the file may be gone when the edit is used
        self.concepts = concepts
        self.seed = seed
        self.base = base
        self.checkpointing = checkpointing
        self.strict_loading = False
        #: What retention callbacks ask of a closed form: Gram matrices ``(D, D)`` of text states to hold, by name.
        self.kept: dict[str, Callable[[], Tensor]] = {}
        # In a tuple, since a module that is assigned becomes a part, and parts are made in configure_model.
        self._given = (backbone,)

    def editable(self) -> dict[str, nn.Parameter]:
        """What may change and is saved, by name in the backbone; by default the text layers' weights."""
        layers = self.backbone.text_layers()
        return {f"{name}.weight": cast(nn.Parameter, layer.weight) for name, layer in layers.items()}

    def trainable(self) -> dict[str, nn.Parameter]:
        """What of it an optimizer moves; by default all that is editable."""
        return self.editable()

    def touched(self) -> Collection[str]:
        """Parameters that will change, and modules that `adapt` will add or replace, by name in the backbone."""
        return self.editable()

    def adapt(self) -> None:
        """Put modules of the method's own into the backbone, once its original is safe; by default none."""

    def stays_whole(self) -> bool:
        """Whether what is trained is kept from being split over ranks, by a strategy that splits weights.

        By default that of closed forms is: they have no optimizer whose states would be worth it.
        """
        return not self.automatic_optimization

    def configure_model(self) -> None:
        """Load the backbone and keep its original; called before a checkpoint is restored, in every command."""
        if "backbone" in self._modules:
            return
        (given,), mesh = self._given, self._device_mesh
        empty = mesh is not None and self.global_rank > 0  # rank 0 alone reads the denoiser's weights
        with torch.device("cpu"):  # Lightning moves what was made, where its own context would put some of it elsewhere
            dtype = torch.bfloat16 if self.base == "bfloat16" else torch.float32
            self.backbone = load_backbone(given, dtype, empty=empty) if isinstance(given, str) else given.to(dtype)
            self._check_world()
            self.original = self.backbone.original(self.touched())
            self.fingerprint, self.rounded = ("" if empty else self.original.fingerprint(d) for d in _KNOWN_BY)
            with torch.random.fork_rng(devices=[]):  # adapters begin alike on every rank and at every start
                torch.manual_seed(mix(self.seed, 5))
                self.adapt()
        widen((self.editable() | self.trainable()).values())
        if self.checkpointing:
            self.backbone.checkpoint()
        for parameter in self.trainable().values():
            parameter.requires_grad_(True)
        if mesh is not None:
            self._split(mesh["data_parallel"])

    def _split(self, mesh: DeviceMesh) -> None:
        """Share the weights out among ranks, which from now on must ask the model together."""
        self.fingerprint, self.rounded = gathered([self.fingerprint, self.rounded])[:2]
        full = {} if self.global_rank else {n: v.detach() for n, v in [*self.named_parameters(), *self.named_buffers()]}
        models = [module for module in self.children() if isinstance(module, Backbone)]
        trained = {} if self.stays_whole() else self.trainable()
        split(self.backbone.denoiser, [m.denoiser for m in models if m is not self.backbone], mesh, trained)
        towers = {name: parameter for name, parameter in trained.items() if name.startswith("text_encoders.")}
        if towers:
            split(
                self.backbone.text_encoders, [m.text_encoders for m in models if m is not self.backbone], mesh, towers
            )
        for model in models:
            model.lockstep = True
        pour(self, full, self.trainer.strategy.root_device)

    def edit_values(self) -> dict[str, Tensor]:
        """The values of everything `editable`, whole; where weights are split, every rank must ask."""
        return {name: whole(parameter) for name, parameter in self.editable().items()}

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Give weights of the backbone new values, by name; where weights are split, every rank must call it."""
        for name, value in values.items():
            put(self.backbone.get_parameter(name), value)

    def _check_world(self) -> None:
        world = self.backbone.world
        unknown = [c.name for c in self.concepts if world is not None and not world.knows(c.name)]
        if world is not None and unknown:
            near = ", ".join(world.nearest(unknown[0])) or "see its labels.json"
            raise ErasureError(f"The world {world.name} does not know {unknown[0]!r}. Nearest: {near}.")

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        named = {key: plain(value) for key, value in self.hparams.items() if not key.startswith("_")}
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
            "seed": self.seed,
            "versions": {name: version(name) for name in packages},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the edit alone, and plain values only, so that the file can be read without running code."""
        checkpoint["state_dict"] = {PREFIX + name: value for name, value in self.edit_values().items()}
        checkpoint["hyper_parameters"] = self.arguments()
        checkpoint["erasure"] = self.description()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse an edit of another model or of other parameters.

        Raises:
            ErasureError: Naming what differs.
        """
        found, wanted = set(checkpoint["state_dict"]), {PREFIX + n for n in self.editable()}
        if found != wanted:
            odd = sorted(found ^ wanted)
            raise ErasureError(
                f"{type(self).__name__} edits {len(wanted)} parameters as configured; the checkpoint has {len(found)}. "
                f"They differ in {len(odd)}, {odd[0]} first. Use the config the checkpoint was made with."
            )
        made = checkpoint.get("erasure", {})
        then = made.get("backbone_fingerprint")
        if then not in (None, self.fingerprint, self.rounded) and made.get("backbone_bfloat16") != self.fingerprint:
            raise ErasureError(
                f"The checkpoint edits a model with fingerprint {then}; {self.backbone.name} has {self.fingerprint}."
            )

    def kept_gram(self) -> Tensor:
        """``sum w p p^T`` of the text states that retention callbacks hold, ``(D, D)`` in float64; else zeros."""
        width = next(iter(self.original.text_layers().values())).in_features
        nothing = torch.zeros(width, width, dtype=torch.float64, device=self.backbone.device)
        return torch.stack([nothing, *(gram() for gram in self.kept.values())]).sum(dim=0)

    def test_step(self, batch: Shots, batch_idx: int) -> dict[str, Tensor]:
        """Draw a batch of prompts with the original and the edited model from the same noise."""
        folder = getattr(self.trainer.datamodule, "originals", None)  # type: ignore[attr-defined]
        before = kept(folder, self.fingerprint, batch, lambda: self._draw(self.original, batch), self.original.anyone)
        return {"original": before.to(self.device), "edited": self._draw(self.backbone, batch)}

    def validation_step(self, batch: Shots, batch_idx: int) -> dict[str, Tensor]:
        """The same as `test_step`, on the smaller plan of ``validate``."""
        return self.test_step(batch, batch_idx)

    def predict_step(self, batch: Shots, batch_idx: int) -> dict[str, Tensor]:
        """The same as `test_step`, on a user's prompts."""
        return self.test_step(batch, batch_idx)

    @staticmethod
    def _draw(backbone: Backbone, shots: Shots) -> Tensor:
        return draw(backbone, shots.prompts, shots.seeds, steps=shots.steps, guidance=shots.guidance, size=shots.size)


class GradientErasure(ErasureModule):
    """A method that lowers a loss.

    Args:
        lr: Highest learning rate of Adam, above 0.
        warmup: Steps over which the rate rises from 0; then it falls along a cosine to the end of the run.
        bank: Where noisy latents come from: a bank of trajectories, or (``None``) pure noise at random times.
        optimizer: ``adam``, or ``adam8bit``, whose state is a quarter (needs the extra ``bitsandbytes``).
        kwargs: Arguments of every method.
    """

    def __init__(
        self,
        *,
        lr: float = 1e-4,
        warmup: int = 0,
        bank: TrajectoryBank | None = None,
        optimizer: Kind = "adam",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.lr = lr
        self.optimizer = optimizer
        self.warmup = warmup
        self.bank = bank
        self._drawn: Drawn | None = None
        #: Weighted terms that retention callbacks add to the loss, by name.
        self.loss_terms: dict[str, Callable[[], Tensor]] = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the bank too, so that a resumed run draws the same moments."""
        super().on_save_checkpoint(checkpoint)
        if self.bank is not None:
            checkpoint["banks"] = gathered([self.bank.state_dict()])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the bank where it was left; a rank that had none walks its own."""
        super().on_load_checkpoint(checkpoint)
        state = own(checkpoint.get("banks", []))
        if self.bank is not None and state is not None:
            self.bank.load_state_dict(state)

    @abstractmethod
    def erasure_loss(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """What is to be lowered, a scalar.

        Args:
            x: Noisy latents, ``(B, C, h, w)``.
            t: Their times, ``(B,)``.
            batch: The concept prompts, ``B`` of them.
        """

    def noisy_latents(self, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """Latents ``(B, C, h, w)`` and times ``(B,)`` at which the loss is taken, and the sentences they belong to."""
        if self.bank is None:
            return *pure_noise(self.backbone, len(batch.concepts)), batch
        followed = self.backbone if self.bank.student else self.original
        self.bank.follow(followed, self._walked, mix(self.seed, self.global_rank))
        drawn = self.bank.draw(batch.concepts)
        self._drawn = drawn._replace(x=drawn.x.to(self.backbone.dtype))
        return self._drawn.x, drawn.t, drawn.batch

    def _walked(self, walk: int) -> Batch:
        """What a walk of the bank draws: at least one sentence a concept."""
        data: PromptData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.sentences(max(cast(TrajectoryBank, self.bank).trajectories, len(self.concepts)), walk, salt=4)

    def teacher(self, x: Tensor, t: Tensor, batch: Batch) -> Teacher:
        """The frozen original at these latents; answers that the bank holds are not asked again."""
        if self.bank is not None and self._drawn is not None and x is self._drawn.x:
            return self.bank.teacher(self.original, self._drawn)
        return Teacher(self.original, x, t, batch)

    def student(self, x: Tensor, t: Tensor, prompts: Sequence[str | Phrase]) -> Tensor:
        """What the edited model predicts for prompts, ``(B, C, h, w)``."""
        return self.backbone.denoise(x, t, self.backbone.encode(prompts))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Key every draw of the step to seed, rank and step: a resumed run draws what an unbroken one would have."""
        torch.manual_seed(mix(self.seed, self.global_rank, self.trainer.fit_loop.epoch_loop.total_batch_idx))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on the erasure loss and every retention term."""
        x, t, batch = self.noisy_latents(batch)
        terms = {"erasure": self.erasure_loss(x, t, batch)} | {n: term() for n, term in self.loss_terms.items()}
        self._log_terms(terms)
        loss = torch.stack(list(terms.values())).sum()
        self.log("loss", loss.detach(), prog_bar=True, sync_dist=True)
        return loss

    def on_after_backward(self) -> None:
        """Average the gradients of weights that a strategy which splits weights has left whole."""
        if self.backbone.lockstep:
            averaged([p for p in self.trainable().values() if not isinstance(p, DTensor)])

    def _log_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Values every step; gradient norms, which cost a backward each, only on the steps that are logged."""
        self.log_dict({f"loss/{name}": value.detach() for name, value in terms.items()}, sync_dist=True)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % every or self.backbone.lockstep:  # split weights are no leaves of the graph
            return
        parameters = [p for p in self.trainable().values() if p.requires_grad]
        for name, value in terms.items() if len(terms) > 1 else ():
            if value.requires_grad:  # a term about something the method does not edit has no slope
                slopes = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
                self.log(f"gradient/{name}", torch.stack([s.norm() for s in slopes if s is not None]).norm())

    def configure_optimizers(self) -> Any:
        """Adam with warm-up and cosine over the run's steps.

        Raises:
            ErasureError: If the trainer's precision has rounded what the base's leaves in float32.
        """
        trained = list(self.trainable().values())
        if self.base == "bfloat16" and any(p.dtype != torch.float32 for p in trained):
            raise ErasureError(
                f"{type(self).__name__} with base bfloat16 needs its edit in float32; found {trained[0].dtype}. Leave "
                "--trainer.precision at 32-true."
            )
        optimizer = make_optimizer(self.optimizer, trained, self.lr)
        data: PromptData = self.trainer.datamodule  # type: ignore[attr-defined]
        schedule = LambdaLR(optimizer, warm_cosine(self.warmup, data.training_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ClosedFormErasure(ErasureModule):
    """A method that solves for its edit: one step, no gradient."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    @abstractmethod
    def solve(self) -> dict[str, Tensor]:
        """The new values of everything `editable`, by name, in any precision."""

    @torch.no_grad()
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Solve on one rank, write the weights, stop; a run resumed behind its one step has nothing left to do."""
        self.trainer.should_stop = True
        if self.global_step:
            return
        if self.global_rank == 0 or self.backbone.lockstep:
            solution = self.solve()
            if self.editable().keys() != solution.keys():
                raise ErasureError(f"{type(self).__name__}.solve must return every editable parameter and no other.")
            self.write(solution)
        spoken(self.editable().values())
        optimizer = self.optimizers()
        optimizer.step()  # type: ignore[union-attr]

    def configure_optimizers(self) -> Optimizer:
        """A step counter: Lightning counts steps, and saves, by optimizers alone."""
        return torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.0)
