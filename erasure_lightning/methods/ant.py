"""ANT: early steps go where they went, late ones turn away from the concept.

Li et al., Set You Straight: Auto-Steering Denoising Trajectories, arXiv 2504.12782. Official code
lileyang1210/ANT @ 78ce8f3. With an early, noisy latent ``x_e`` and a late one ``x_l`` of one
trajectory of the concept, and ``D*(x) = eps*(x, c) - eps*(x, 0)`` of the frozen original, the loss
(verified in code) is

    ``mse( eps(x_l, c), eps*(x_l, 0) - D*(x_l) ) + b mse( eps(x_l, 0), eps*(x_l, 0) )``
    ``+ a [ mse( eps(x_e, c), eps*(x_e, 0) + D*(x_e) ) + b mse( eps(x_e, 0), eps*(x_e, 0) ) ]``

The early target is thus ``eps*(x_e, c)``. Two scripts swap the names of a and b: for one concept a
is 1 (alpha1), b 0.5 (alpha2), for many a is 0.5 (alpha_2) and b 2.5 (alpha_1). This is the script
for one concept, on any number.

That script cannot run as released (its call lacks three arguments), so no published edit can be
reproduced from it. Where it has bugs and ours does what the abstract says, as the script for many
concepts does:

* stages: it counts steps that *remain*, so that it keeps the last 7 of 50 and turns the rest. Ours
  keeps the first.
* drift: it predicts ``eps(x, 0)`` without gradient, so that both b terms are constants. Ours have
  their slopes.
* masks: it lets the half of the weights move whose slopes are *smallest*. Ours the largest, as
  SalUn, its model.

Masks (verified in code): a map is the sum of the loss's signed slopes over 10 latents, cut in half
tensor by tensor; what all 5 maps mark may move. Its maps move the weights while they sum (Adam at
1e-2), ours stay at the original, where the early and the drift terms have no slope: a map is the
late term's. Officially nudity alone has maps for four words.

The latents are the student's there, the original's in the script for many, which trains rank-64
adapters and fuses them by MACE's closed form (left out); the bank decides. Its numbers for SD 1.4:
Adam 5e-4 (constant), 250 steps of 1 pair, the whole UNet. The rate, ``early``, ``alpha`` and
``drift`` are the script's; the emoji world, which is small and decides early what it draws, needs
others: its config has them.

Cost of a step on a bank, for each pair: 4 forwards and backwards, none of the original. The maps
cost as much as ``maps`` times 10 pairs, once.
"""

from typing import Any

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.interface import Part
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.latent_sources import NoisyBatch
from erasure_lightning.training.prompt_states import masked_mean
from erasure_lightning.training.saliency import Masks, SalientErasure, salient
from erasure_lightning.training.trajectory_bank import TrajectoryBank

#: Pairs of latents that a saliency map sums over, at least, and how many of them at a time.
PAIRS, CHUNK = 10, 2


class ANT(SalientErasure):
    """Auto-steering: keeps the early steps of the concept's trajectories, and turns the late ones
    away.

    Args:
        early: Share of the times that count as early, from the noisiest on; 0..1, both excluded.
        alpha: Weight ``a`` of early steps against late ones, at least 0.
        drift: Weight ``b`` of holding the empty prompt's predictions, at least 0.
        maps: Saliency maps that must agree on a weight before it may move, at least 1.
        share: Of each tensor's weights that a map marks, above 0; at 1 all weights move, and no map
            is taken.
        train: Which part of the denoiser, as in ESD.
        lr: Highest learning rate.
        kwargs: Arguments of every gradient method.

    Raises:
        ErasureError: If a number is out of range.
    """

    default_steps = 250

    def __init__(
        self,
        *,
        early: float = 0.14,
        alpha: float = 1.0,
        drift: float = 0.5,
        maps: int = 5,
        share: float = 0.5,
        train: Part = "all",
        lr: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(share=share, lr=lr, **kwargs)
        if not 0 < early < 1:
            raise ErasureError(f"ANT needs early above 0 and below 1; found {early}.")
        if alpha < 0 or drift < 0 or maps < 1:
            found = f"{alpha}, {drift}, {maps}"
            raise ErasureError(
                f"ANT needs alpha and drift of at least 0, maps of at least 1; found {found}."
            )
        if isinstance(self.latents, TrajectoryBank) and self.latents.steps < 2:
            raise ErasureError(
                "ANT needs trajectories of at least 2 steps, an early and a late one; found"
                f" {self.latents.steps}."
            )
        self.early, self.alpha, self.drift, self.maps = early, alpha, drift, maps
        self.train_part = train

    def editable(self) -> dict[str, nn.Parameter]:
        """The part of the denoiser that ``train`` names; the saliency masks decide what of it
        moves.
        """
        return self.backbone.denoiser_parameters(self.train_part)

    def first_steps(self, steps: int) -> int:
        """How many of ``steps`` sampling steps are early: one at least, and not all."""
        return min(max(round(self.early * steps), 1), steps - 1)

    def is_early(self, t: Tensor) -> Tensor:
        """Which times belong to the early stage, boolean of their shape."""
        if not isinstance(self.latents, TrajectoryBank):
            return self.backbone.process.share(t) >= 1 - self.early
        times = self.backbone.sampler(self.latents.steps).times
        return t >= times[self.first_steps(len(times)) - 1].to(t)

    def noisy_batch(self, sentences: PromptBatch) -> NoisyBatch:
        """An early and a late step of a trajectory of each concept, ``2 B``; of other latents those
        of any time.
        """
        batch = super().noisy_batch(sentences)
        if not isinstance(self.latents, TrajectoryBank) or batch.rows is None:
            return batch
        rows, steps = batch.rows, self.latents.length
        first = self.first_steps(steps)
        columns = torch.cat(
            (torch.randint(first, rows.shape), torch.randint(first, steps, rows.shape))
        )
        return self.latents.at(rows.repeat(2), columns, self.original)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """The four terms; of each stage the mean over its latents, 0 where it has none."""
        teacher, early = batch.teacher, self.is_early(batch.t)
        turned = 2 * teacher.unconditional - teacher.concept
        target = torch.where(early.view(-1, 1, 1, 1), teacher.concept, turned)
        gap = _gap(self.student(batch), target)
        if self.drift:
            unconditional = self.student(batch, self.backbone.unconditional(len(batch)))
            gap = gap + self.drift * _gap(unconditional, teacher.unconditional)
        kept, away = (
            masked_mean(gap.unsqueeze(0), stage.unsqueeze(0)) for stage in (early, ~early)
        )
        return away + self.alpha * kept

    def saliency(self) -> Masks:
        """What all maps mark, each of latents of its own."""
        chunks = -(-max(PAIRS, len(self.concepts)) // CHUNK)
        numbers = (range(i * chunks, (i + 1) * chunks) for i in range(self.maps))
        masks = [
            salient(self.slopes(map(self._loss, those)), self.share, each=True) for those in numbers
        ]
        return {name: torch.stack([mask[name] for mask in masks]).all(dim=0) for name in masks[0]}

    def _loss(self, number: int) -> Tensor:
        """The loss at fresh latents; concepts take turns with ``number``."""
        return self.erasure_loss(self.noisy_batch(self.sentences(CHUNK, number, salt=8)))


def _gap(now: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of each latent's predictions, ``(B,)``."""
    return (now - target).square().flatten(1).mean(dim=1)
