"""`GradientErasure`: methods that train on a loss."""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import LambdaLR

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.process import LossSpace
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.distributed.collectives import (
    average_gradients,
    gather_on_first_rank,
    of_this_rank,
)
from erasure_lightning.distributed.lightning_internals import training_precision
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.adversary import Adversary, AdversaryModels
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.latent_sources import (
    LatentSource,
    NoisyBatch,
    PureNoise,
    SourceModels,
)
from erasure_lightning.training.optimizers import (
    OptimizerName,
    Schedule,
    groups_by_rate,
    make_optimizer,
    rate_factor,
)


class GradientErasure(ErasureModule):
    """Base of methods that minimise a loss.

    Defaults of a method are those of its paper or official code for Stable Diffusion 1.x, or of its
    nearest relative with code; numbers for the embedded worlds are in their configs. All methods
    here differ from most official code in two ways: prompts are drawn from ten templates (there the
    bare words: ``--data.templates '["{}"]'``), times are the steps of a sampler (there all 1000, or
    50). ``max_steps`` counts the steps of all concepts, as code that draws a concept a step does;
    ``--data.steps_per_concept`` those of each, as code that trains them apart (MACE, SPM) does.

    Args:
        lr: Highest learning rate, at least 0.
        warmup: Steps of linear warm-up, at least 0.
        latents: Source of noisy latents; by default that of the method (`default_latents`).
        schedule: Learning rate after the warm-up: ``constant``, or ``cosine`` to 0 at the end.
        optimizer: ``adam``, ``adamw``, or ``adam8bit`` (``bitsandbytes``; a quarter of the state).
        weight_decay: At least 0; by default 0, and 0.01 for ``adamw``.
        offload_text: Whether frozen text encoders leave the device once they have encoded prompts.
        loss_space: Space in which the erasure loss compares predictions: ``native``, the model's
            own, ``velocity``, ``epsilon`` (the noise) or ``sample`` (the clean latents). Losses of
            text states, attention and likelihoods have none, nor have retention callbacks.
        adversary: Search for conditioning that restores the concept, which is erased too; by
            default none. Methods whose loss is not on predictions for the concept refuse one.
        kwargs: Arguments of `ErasureModule`.

    Raises:
        ErasureError: If a number is out of range, or the method takes no adversary.
    """

    #: Whether the erasure loss is on the student's predictions for the concept.
    takes_adversary: ClassVar[bool] = True

    #: Training steps of the paper or its official code, for a concept; 1000 where neither says.
    default_steps: ClassVar[int] = 1000

    #: Name of a method that the loss calls in a loop, of which plans run two calls; empty for none.
    repeated_call: ClassVar[str] = ""

    #: Whether two kinds of step take turns, each of which plans run.
    alternates: bool = False

    def __init__(
        self,
        *,
        lr: float = 1e-5,
        warmup: int = 0,
        latents: LatentSource | None = None,
        schedule: Schedule = "constant",
        optimizer: OptimizerName = "adam",
        weight_decay: float | None = None,
        offload_text: bool = False,
        loss_space: LossSpace = "native",
        adversary: Adversary | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(type(self).__name__, at_least=0, lr=lr, warmup=warmup, weight_decay=weight_decay)
        if adversary is not None and not self.takes_adversary:
            raise ErasureError(
                f"{type(self).__name__} takes no adversary, as its loss is not on predictions for"
                f" the concept; found {type(adversary).__name__}. Leave it out."
            )
        self.lr = lr
        self.warmup = warmup
        self.schedule: Schedule = schedule
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.offload_text = offload_text
        self.loss_space: LossSpace = loss_space
        self.adversary = adversary
        self.latents = self.default_latents() if latents is None else latents
        #: Steps of a fit with a datamodule, for the rate's schedule; else Lightning's estimate.
        self.training_steps: int | None = None

    def default_latents(self) -> LatentSource:
        """Source of noisy latents without an argument; by default pure noise."""
        return PureNoise()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of latents and adversary, from which a resumed run continues."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["latents"] = gather_on_first_rank(self.latents.state_dict())
        if self.adversary is not None:
            checkpoint["adversary"] = gather_on_first_rank(self.adversary.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore latents and adversary; a rank without a state draws its own."""
        super().on_load_checkpoint(checkpoint)
        if latents := of_this_rank(checkpoint.get("latents", [])):
            self.latents.load_state_dict(latents)
        if self.adversary and (state := of_this_rank(checkpoint.get("adversary", []))):
            self.adversary.load_state_dict(state)

    @abstractmethod
    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """The erasure loss, a scalar.

        Args:
            batch: Noisy latents ``(B, C, h, w)`` with their times, and the ``B`` concept prompts
                they belong to.
        """

    def on_train_start(self) -> None:
        """Call `prepare` under the autocast of the loss; solutions come before or after it."""
        with training_precision(self):
            self.prepare()

    def prepare(self) -> None:
        """Offload the text encoders, prepare latents and adversary, before the first step.

        Methods compute here what their loss reads in every step.

        Raises:
            ErasureError: If text encoders are trained that are to be offloaded.
        """
        if self.offload_text:
            if self.backbone.edits_text(self.trainable()):
                raise ErasureError(
                    f"{type(self).__name__} trains the text encoders, which therefore stay on the"
                    " device: leave offload_text false."
                )
            self.original.offload_text()
            self.backbone.offload_text()
        self.latents.prepare(self.models())
        if self.adversary is not None:
            self.adversary.prepare()

    def models(self) -> SourceModels:
        """The models and prompts that latents are drawn from."""
        seed = derive_seed(self.seed, self.global_rank)
        count = len(self.concepts)
        return SourceModels(self.original, self.backbone, self.source_sentences, count, seed)

    def source_sentences(self, count: int, number: int) -> PromptBatch:
        """``count`` concept prompts for trajectories or images, a function of ``number``."""
        return self.prompts.covering(count, number, salt=4)

    def sentences(self, count: int, number: int, salt: int) -> PromptBatch:
        """``count`` concept prompts, a function of seed, rank, ``number`` and ``salt``."""
        return self.prompts.batch(count, number, salt)

    def noisy_batch(self, sentences: PromptBatch) -> NoisyBatch:
        """Noisy latents for concept prompts, or for others of the same concepts."""
        return self.latents.draw(sentences, self.models())

    def student(self, batch: NoisyBatch, conditioning: Conditioning | None = None) -> Tensor:
        """The edited model's predictions at a batch's latents, ``(B, C, h, w)``.

        Args:
            batch: The latents.
            conditioning: Conditioning of prompts, ``(B, L, D)``; by default `concept_conditioning`.
        """
        if conditioning is None:
            conditioning = self.concept_conditioning(batch)
        return self.backbone.denoise(batch.x, batch.t, conditioning)

    def concept_conditioning(self, batch: NoisyBatch) -> Conditioning:
        """The conditioning to erase, of a batch's concept prompts or of the adversary's search."""
        if self.adversary is None:
            return self.backbone.encode(batch.prompts)
        return self.adversary.conditioning(batch, self.adversary_step, self.adversary_models())

    @property
    def adversary_step(self) -> int:
        """Number of the step in an adversary's schedule, from 0; by default that of the run."""
        return self.global_step

    def adversary_models(self) -> AdversaryModels:
        """The models that an adversary searches."""
        return AdversaryModels(
            student=self.backbone,
            concepts=[concept.name for concept in self.concepts],
            predict=self.student,
            error=self.prediction_error,
            draw=self.noisy_batch,
            sentences=partial(self.sentences, salt=12),
        )

    def prediction_error(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of native predictions ``(B, C, h, w)`` in `loss_space`, a scalar.

        Args:
            prediction: The student's predictions, or combinations of them.
            target: Their targets.
            t: Times of the latents, ``(B,)``.
        """
        if self.loss_space == "native":
            return mse_loss(prediction, target)
        return self.prediction_errors(prediction, target, t).mean()

    def prediction_errors(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """`prediction_error` of each row, ``(B,)``."""
        errors = (prediction - target).square().flatten(1).mean(dim=1)
        if self.loss_space == "native":
            return errors
        return errors * self.backbone.process.error_scale(self.loss_space, t).to(errors).square()

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        """Seed the step by seed, rank and number, so that a resumed run draws the same."""
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(derive_seed(self.seed, self.global_rank, number))

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """Sum of the erasure loss and every retention term, a scalar."""
        terms = {"erasure": self.erasure_loss(self.noisy_batch(batch))}
        for callback in self.retention:
            terms[callback.label] = callback.weight_at(self.global_step) * callback.term(self)
        self._log_terms(terms)
        return torch.stack(list(terms.values())).sum()

    def on_after_backward(self) -> None:
        """Average the gradients of parameters that a sharding strategy replicates."""
        if self.backbone.sharded:
            average_gradients([p for p in self.trainable().values() if not isinstance(p, DTensor)])

    def _log_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Log every term; at logged steps the mean over ranks, and each term's gradient norm."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_logged = every > 0 and (self.global_step + 1) % every == 0
        values = torch.stack([value.detach() for value in terms.values()])
        if is_logged:
            values = self.trainer.strategy.reduce(values, reduce_op="mean")
        self.log_dict({f"loss/{n}": v for n, v in zip(terms, values.unbind(), strict=True)})
        self.log("loss", values.sum(), prog_bar=True)
        # Sharded weights are no leaves of the graph; a single term's norm is the loss's own.
        if is_logged and not self.backbone.sharded and len(terms) > 1:
            self._log_gradient_norms(terms)

    def _log_gradient_norms(self, terms: Mapping[str, Tensor]) -> None:
        parameters = [p for p in self.trainable().values() if p.requires_grad]
        # Without terms on states that the method does not edit.
        for name, value in ((n, v) for n, v in terms.items() if v.requires_grad):
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            norms = [gradient.norm() for gradient in gradients if gradient is not None]
            self.log(f"gradient/{name}", torch.stack(norms).norm())

    def learning_rates(self) -> dict[str, float]:
        """Highest learning rate of each trainable parameter, by name; by default ``lr``."""
        return dict.fromkeys(self.trainable(), self.lr)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule of its learning rate over the run's steps.

        Raises:
            ErasureError: If the trainer's precision rounds an edit that is to be float32.
        """
        trained = list(self.trainable().values())
        if self.base_dtype != "float32" and any(p.dtype != torch.float32 for p in trained):
            raise ErasureError(
                f"{type(self).__name__} with base_dtype {self.base_dtype} needs its edit in"
                f" float32; found {trained[0].dtype}. Leave the trainer's precision at 32-true."
            )
        groups = groups_by_rate(self.trainable(), self.learning_rates())
        optimizer = make_optimizer(self.optimizer, groups, self.weight_decay)
        planned = self.trainer.datamodule and self.training_steps  # type: ignore[attr-defined]
        steps = planned or int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, rate_factor(self.schedule, self.warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
