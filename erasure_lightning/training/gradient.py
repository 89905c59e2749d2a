"""`GradientErasure`: methods that train on a loss."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.distributed.collectives import (
    average_gradients,
    gather_on_first_rank,
    of_this_rank,
)
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
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
    make_optimizer,
    rate_factor,
)


class GradientErasure(ErasureModule):
    """A method that lowers a loss.

    Defaults of a method are the paper's or its official code's for Stable Diffusion 1.x, or those
    of its nearest relative with code; what suits the embedded worlds stands in their configs. Three
    things all methods here share, and most official code does not: sentences are drawn from the ten
    of `concepts` (there the bare words: ``--data.templates '["{}"]'``), times are the steps of a
    bank's sampler (there all 1000, or 50), and ``max_steps`` counts the steps of all concepts
    together (``--data.rounds`` those of each).

    Args:
        lr: Highest learning rate, at least 0.
        warmup: Steps over which the rate rises from 0, at least 0.
        latents: Where noisy latents come from; by default the method's own choice
            (`default_latents`).
        schedule: Whether the rate then stays (``constant``) or falls to 0 at the end of the run
            (``cosine``).
        optimizer: ``adam``, ``adamw``, or ``adam8bit``, whose state is a quarter (needs the extra
            ``bitsandbytes``).
        weight_decay: At least 0; by default 0, and 0.01 of ``adamw``.
        kwargs: Arguments of every method.

    Raises:
        ErasureError: If a number is out of range.
    """

    #: Training steps of the paper or its official code, for a concept; 1000 where neither says.
    default_steps: ClassVar[int] = 1000

    def __init__(
        self,
        *,
        lr: float = 1e-5,
        warmup: int = 0,
        latents: LatentSource | None = None,
        schedule: Schedule = "constant",
        optimizer: OptimizerName = "adam",
        weight_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in {"lr": lr, "warmup": warmup, "weight_decay": weight_decay or 0}.items():
            if value < 0:
                raise ErasureError(
                    f"{type(self).__name__} needs {name} of at least 0; found {value}."
                )
        self.lr = lr
        self.warmup = warmup
        self.schedule: Schedule = schedule
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.latents = self.default_latents() if latents is None else latents
        #: Steps of the run, over which the rate's schedule extends; by default Lightning's estimate.
        self.training_steps: int | None = None

    def default_latents(self) -> LatentSource:
        """Where noisy latents come from unless an argument says so; by default pure noise."""
        return PureNoise()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the latents too, so that a resumed run draws the same."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["latents"] = gather_on_first_rank(self.latents.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the latents where they were left; a rank that had none draws its own."""
        super().on_load_checkpoint(checkpoint)
        if state := of_this_rank(checkpoint.get("latents", [])):
            self.latents.load_state_dict(state)

    @abstractmethod
    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """The erasure loss, a scalar.

        Args:
            batch: Noisy latents ``(B, C, h, w)`` with their times, and the ``B`` concept prompts
                they belong to.
        """

    def on_train_start(self) -> None:
        """Draw the latents that are drawn once."""
        self.latents.prepare(self.models())

    def models(self) -> SourceModels:
        """What latents are drawn from: both models, and the sentences of rollouts and images."""
        seed = derive_seed(self.seed, self.global_rank)
        return SourceModels(
            self.original, self.backbone, self.source_sentences, len(self.concepts), seed
        )

    def source_sentences(self, count: int, number: int) -> PromptBatch:
        """``count`` sentences that trajectories or images are drawn for, a function of ``number``."""
        return self.sentences(count, number, salt=4)

    def sentences(self, count: int, number: int, salt: int) -> PromptBatch:
        """``count`` concept prompts, a function of seed, rank, ``number`` and ``salt``, which tells
        uses apart.
        """
        return self.prompts.batch(count, number, salt)

    def noisy_batch(self, sentences: PromptBatch) -> NoisyBatch:
        """Noisy latents for sentences, or for others of the same concepts."""
        return self.latents.draw(sentences, self.models())

    def student(self, batch: NoisyBatch, conditioning: Conditioning | None = None) -> Tensor:
        """The edited model's predictions at a batch's latents, ``(B, C, h, w)``.

        Args:
            batch: The latents.
            conditioning: Of prompts, ``(B, L, D)``; the batch's concept prompts by default.
        """
        return self.backbone.denoise(
            batch.x,
            batch.t,
            self.backbone.encode(batch.prompts) if conditioning is None else conditioning,
        )

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        """Key every draw of the step to seed, rank and step: a resumed run draws what an unbroken
        one would have.
        """
        torch.manual_seed(
            derive_seed(
                self.seed, self.global_rank, self.trainer.fit_loop.epoch_loop.total_batch_idx
            )
        )

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """One step on the erasure loss and every retention term."""
        terms = {"erasure": self.erasure_loss(self.noisy_batch(batch))}
        for callback in self.retention:
            terms[callback.label] = callback.weight_at(self.global_step) * callback.term(self)
        self._log_terms(terms)
        return torch.stack(list(terms.values())).sum()

    def on_after_backward(self) -> None:
        """Average the gradients of weights that a strategy which splits weights has left whole."""
        if self.backbone.sharded:
            average_gradients([p for p in self.trainable().values() if not isinstance(p, DTensor)])

    def _log_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Values every step; only where they are written down those of all ranks, and what costs a
        backward each.
        """
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        written = every > 0 and (self.global_step + 1) % every == 0
        values = torch.stack([value.detach() for value in terms.values()])
        if written:
            values = self.trainer.strategy.reduce(values, reduce_op="mean")
        self.log_dict(
            {f"loss/{name}": value for name, value in zip(terms, values.unbind(), strict=True)}
        )
        self.log("loss", values.sum(), prog_bar=True)
        if not written or self.backbone.sharded:  # split weights are no leaves of the graph
            return
        parameters = [p for p in self.trainable().values() if p.requires_grad]
        for name, value in terms.items() if len(terms) > 1 else ():
            if value.requires_grad:  # a term about something the method does not edit has no slope
                slopes = torch.autograd.grad(
                    value, parameters, retain_graph=True, allow_unused=True
                )
                self.log(
                    f"gradient/{name}",
                    torch.stack([s.norm() for s in slopes if s is not None]).norm(),
                )

    def configure_optimizers(self) -> Any:
        """The optimizer, and its rate's schedule over the run's steps.

        Raises:
            ErasureError: If the trainer's precision has rounded what the base's leaves in float32.
        """
        trained = list(self.trainable().values())
        if self.base == "bfloat16" and any(p.dtype != torch.float32 for p in trained):
            raise ErasureError(
                f"{type(self).__name__} with base bfloat16 needs its edit in float32; found"
                f" {trained[0].dtype}. Leave --trainer.precision at 32-true."
            )
        optimizer = make_optimizer(self.optimizer, trained, self.lr, self.weight_decay)
        steps = self.training_steps or int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, rate_factor(self.schedule, self.warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
