"""Local predicted-noise preservation, SAGE's second retention term (arXiv 2506.09363).

Stated in the paper; the form is inferred with high confidence. Cost per step: two denoiser forwards and one backward on
the drawn prompts; one forward less where a bank holds the original's predictions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from erasure_lightning.bank import Teacher, TrajectoryBank, pure_noise
from erasure_lightning.concepts import Batch
from erasure_lightning.functional import mix
from erasure_lightning.module import GradientErasure
from erasure_lightning.ranks import collected, of_this_rank
from erasure_lightning.retention.base import RetentionCallback


class LocalNoisePreservation(RetentionCallback):
    """Keeps the denoiser's predictions on retained prompts as they were: ``E |eps(x, t, r) - eps*(x, t, r)|^2``.

    Args:
        weight: Of the term; 0.3, and 5 prompts, in AdvUnlearn.
        batch_size: Prompts drawn a step, on each rank.
        bank: Take ``(x, t)`` from trajectories of the original on retained prompts; by default from pure noise at
            random times, which reaches more prompts for less.
        kwargs: Arguments of every retention callback.
    """

    name = "local"

    def __init__(
        self, weight: float = 0.3, batch_size: int = 5, bank: TrajectoryBank | None = None, **kwargs: Any
    ) -> None:
        super().__init__(weight, **kwargs)
        self.batch_size = batch_size
        self.bank = bank

    def prepare(self, module: GradientErasure) -> None:
        """Walk the bank's trajectories, if there is a bank."""
        if self.bank is not None:
            seed = mix(module.seed, module.global_rank, 3)
            order = torch.randperm(len(self.retained), generator=torch.Generator().manual_seed(seed)).tolist()
            walked = [self.retained[i] for i in order[: self.bank.trajectories]]
            self.bank.follow(module.original, lambda _: _sentences(walked), seed)

    def term(self, module: GradientErasure) -> Tensor:
        """Mean squared change of the predictions, a scalar."""
        if self.bank is not None:
            original = self.bank.teacher(module.original, self.bank.draw([""] * self.batch_size))
        else:
            prompts = [self.retained[i] for i in self.draw(self.batch_size)]
            original = Teacher(module.original, *pure_noise(module.backbone, len(prompts)), _sentences(prompts))
        return mse_loss(module.student(original.x, original.t, original.batch.prompts), original.concept)

    def state_dict(self) -> dict[str, Any]:
        """Every rank's bank, so that a resumed run draws the same moments."""
        return {"banks": collected(self.bank.state_dict())} if self.bank is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the bank where it was left; a rank that had none walks its own."""
        state = of_this_rank(state_dict.get("banks", []))
        if self.bank is not None and state is not None:
            self.bank.load_state_dict(state)


def _sentences(prompts: list[str]) -> Batch:
    """Retained prompts as sentences without a concept."""
    return Batch(prompts, [""] * len(prompts), [""] * len(prompts))
