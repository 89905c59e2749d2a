"""The two shapes of an `ErasureModule`: methods that descend a gradient, and methods that solve in closed form."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from erasure_lightning.bank import Drawn, Teacher, TrajectoryBank, pure_noise
from erasure_lightning.concepts import Batch, Phrase
from erasure_lightning.data import PromptData
from erasure_lightning.erasure import PREFIX as PREFIX  # these two are part of what this module offers
from erasure_lightning.erasure import ErasureModule as ErasureModule
from erasure_lightning.errors import ErasureError
from erasure_lightning.functional import Schedule, mix, rate_factor
from erasure_lightning.optimizers import Kind, make_optimizer
from erasure_lightning.ranks import averaged, broadcast, collected, of_this_rank


class GradientErasure(ErasureModule):
    """A method that lowers a loss.

    Defaults of a method are the paper's or its official code's for Stable Diffusion 1.x, or those of its nearest
    relative with code; what suits the embedded worlds stands in their configs. Three things all methods here share,
    and most official code does not: sentences are drawn from the ten of `concepts` (there the bare words:
    ``--data.templates '["{}"]'``), times are the steps of a bank's sampler (there all 1000, or 50), and
    ``max_steps`` counts the steps of all concepts together (``--data.rounds`` those of each).

    Args:
        lr: Highest learning rate, at least 0.
        warmup: Steps over which the rate rises from 0, at least 0.
        bank: Where noisy latents come from: a bank of trajectories, or (``None``) pure noise at random times.
        schedule: Whether the rate then stays (``constant``) or falls to 0 at the end of the run (``cosine``).
        optimizer: ``adam``, ``adamw``, or ``adam8bit``, whose state is a quarter (needs the extra ``bitsandbytes``).
        weight_decay: At least 0; by default 0, and 0.01 of ``adamw``.
        kwargs: Arguments of every method.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        lr: float = 1e-5,
        warmup: int = 0,
        bank: TrajectoryBank | None = None,
        schedule: Schedule = "constant",
        optimizer: Kind = "adam",
        weight_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in {"lr": lr, "warmup": warmup, "weight_decay": weight_decay or 0}.items():
            if value < 0:
                raise ErasureError(f"{type(self).__name__} needs {name} of at least 0; found {value}.")
        self.lr = lr
        self.warmup = warmup
        self.schedule: Schedule = schedule
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.bank = bank
        self._drawn: Drawn | None = None
        #: Weighted terms that retention callbacks add to the loss, by name.
        self.loss_terms: dict[str, Callable[[], Tensor]] = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the bank too, so that a resumed run draws the same moments."""
        super().on_save_checkpoint(checkpoint)
        if self.bank is not None:
            checkpoint["banks"] = collected(self.bank.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the bank where it was left; a rank that had none walks its own."""
        super().on_load_checkpoint(checkpoint)
        state = of_this_rank(checkpoint.get("banks", []))
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
        return torch.stack(list(terms.values())).sum()

    def on_after_backward(self) -> None:
        """Average the gradients of weights that a strategy which splits weights has left whole."""
        if self.backbone.lockstep:
            averaged([p for p in self.trainable().values() if not isinstance(p, DTensor)])

    def _log_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Values every step; only where they are written down those of all ranks, and what costs a backward each."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        written = every > 0 and (self.global_step + 1) % every == 0
        values = torch.stack([value.detach() for value in terms.values()])
        if written:
            values = self.trainer.strategy.reduce(values, reduce_op="mean")
        self.log_dict({f"loss/{name}": value for name, value in zip(terms, values.unbind(), strict=True)})
        self.log("loss", values.sum(), prog_bar=True)
        if not written or self.backbone.lockstep:  # split weights are no leaves of the graph
            return
        parameters = [p for p in self.trainable().values() if p.requires_grad]
        for name, value in terms.items() if len(terms) > 1 else ():
            if value.requires_grad:  # a term about something the method does not edit has no slope
                slopes = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
                self.log(f"gradient/{name}", torch.stack([s.norm() for s in slopes if s is not None]).norm())

    def configure_optimizers(self) -> Any:
        """The optimizer, and its rate's schedule over the run's steps.

        Raises:
            ErasureError: If the trainer's precision has rounded what the base's leaves in float32.
        """
        trained = list(self.trainable().values())
        if self.base == "bfloat16" and any(p.dtype != torch.float32 for p in trained):
            raise ErasureError(
                f"{type(self).__name__} with base bfloat16 needs its edit in float32; found {trained[0].dtype}. Leave "
                "--trainer.precision at 32-true."
            )
        optimizer = make_optimizer(self.optimizer, trained, self.lr, self.weight_decay)
        data: PromptData = self.trainer.datamodule  # type: ignore[attr-defined]
        schedule = LambdaLR(optimizer, rate_factor(self.schedule, self.warmup, data.training_steps))
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
        broadcast(self.editable().values())
        optimizer = self.optimizers()
        optimizer.step()  # type: ignore[union-attr]

    def configure_optimizers(self) -> Optimizer:
        """A step counter: Lightning counts steps, and saves, by optimizers alone."""
        return torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.0)
