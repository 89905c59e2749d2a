"""ANT: retains the early steps of a concept's trajectories and steers the late ones away from it.

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

* stages: it counts steps that *remain*, so that it retains the last 7 of 50 and steers the rest.
  Ours retains the first.
* drift: it predicts ``eps(x, 0)`` without gradient, so that both b terms are constants. Ours have
  gradient.
* masks: it trains the half of the weights whose gradients are *smallest*; ours the largest, as in
  SalUn, which it follows.

Masks (verified in code): a map is the sum of the loss's signed gradients over 10 latents,
thresholded at the half of each tensor; what all 5 maps mark is trained. Its maps change the weights
while they sum (Adam at 1e-2), ours are computed at the original, where the early and the drift
terms have no gradient: a map is the late term's. Officially nudity alone has maps for four words.

The official latents are the student's, or the original's in the script for many concepts, which
trains rank-64 adapters and fuses them by MACE's closed form (left out); here the bank is set to
either. Its numbers for SD 1.4: Adam 5e-4 (constant), 250 steps of 1 pair, the whole UNet. The rate,
``early``, ``alpha`` and ``drift`` are the script's; the emoji world, a small model whose early
steps decide the image, needs others: its config has them.

Cost of a step on a bank, for each pair: 4 forwards and backwards, none of the original. The maps
cost as much as ``maps`` times 10 pairs, once.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.backbones.interface import Part
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.adapter_methods import PartErasure
from erasure_lightning.training.adversary import AdversaryModels
from erasure_lightning.training.latent_sources import NoisyBatch
from erasure_lightning.training.prompt_states import masked_mean
from erasure_lightning.training.saliency import ParameterMasks, SalientErasure, salient_masks
from erasure_lightning.training.trajectory_bank import TrajectoryBank

#: Least number of pairs of latents that a saliency map sums over.
_PAIRS = 10

#: Pairs in a batch of a saliency map.
_CHUNK = 2


class ANT(SalientErasure, PartErasure):
    """Auto-steering: retains the early steps of trajectories, and steers the late ones away.

    Args:
        early: Share of the times that count as early, from the noisiest on; 0..1, both excluded.
        alpha: Weight ``a`` of early steps against late ones, at least 0.
        drift: Weight ``b`` of retaining the unconditional predictions, at least 0.
        maps: Number of saliency maps that must all mark a weight that is trained, at least 1.
        share: Share of each tensor's weights that a map marks, above 0; at 1 all weights are
            trained, without maps.
        train: Which part of the denoiser, as in ESD.
        lr: Highest learning rate.
        kwargs: Arguments of `GradientErasure`, and of `PartErasure` (``rank`` for adapters).

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
        super().__init__(train=train, share=share, lr=lr, **kwargs)
        require("ANT", above=0, below=1, early=early)
        if alpha < 0 or drift < 0 or maps < 1:
            raise ErasureError(
                "ANT needs alpha and drift of at least 0, maps of at least 1; found"
                f" {alpha}, {drift}, {maps}."
            )
        if isinstance(self.latents, TrajectoryBank) and self.latents.steps < 2:
            raise ErasureError(
                "ANT needs trajectories of at least 2 steps, an early and a late one; found"
                f" {self.latents.steps}."
            )
        self.early = early
        self.alpha = alpha
        self.drift = drift
        self.maps = maps

    def first_steps(self, steps: int) -> int:
        """Number of early steps among ``steps`` sampling steps: at least one, and not all."""
        return min(max(round(self.early * steps), 1), steps - 1)

    def is_early(self, t: Tensor) -> Tensor:
        """Which times belong to the early stage, boolean of their shape."""
        if not isinstance(self.latents, TrajectoryBank):
            return self.backbone.process.share(t) >= 1 - self.early
        times = self.backbone.sampler(self.latents.steps).times
        return t >= times[self.first_steps(len(times)) - 1].to(t)

    def noisy_batch(self, sentences: PromptBatch) -> NoisyBatch:
        """An early and a late step of a trajectory of each concept, ``2 B`` latents.

        Sources other than a bank supply ``B`` latents of any time.
        """
        batch = super().noisy_batch(sentences)
        if not isinstance(self.latents, TrajectoryBank) or batch.rows is None:
            return batch
        rows = batch.rows
        steps = self.latents.length
        first_late = self.first_steps(steps)
        early = torch.randint(first_late, rows.shape)
        late = torch.randint(first_late, steps, rows.shape)
        return self.latents.at(rows.repeat(2), torch.cat((early, late)), self.original)

    def adversary_models(self) -> AdversaryModels:
        """As in every method; searches draw a latent for each sentence, of any time."""
        return replace(super().adversary_models(), draw=super().noisy_batch)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """The four terms; of each stage the mean over its latents, 0 where it has none.

        The early target is ``eps*(x_e, c)``, the late one ``2 eps*(x_l, 0) - eps*(x_l, c)``.
        """
        teacher = batch.teacher
        early = self.is_early(batch.t)
        steered = 2 * teacher.unconditional - teacher.concept
        target = torch.where(early.view(-1, 1, 1, 1), teacher.concept, steered)
        errors = self.prediction_errors(self.student(batch), target, batch.t)
        if self.drift:
            unconditional = self.student(batch, self.backbone.unconditional(len(batch)))
            drift = self.prediction_errors(unconditional, teacher.unconditional, batch.t)
            errors = errors + self.drift * drift
        early_loss = masked_mean(errors.unsqueeze(0), early.unsqueeze(0))
        late_loss = masked_mean(errors.unsqueeze(0), ~early.unsqueeze(0))
        return late_loss + self.alpha * early_loss

    def saliency(self) -> ParameterMasks:
        """What all maps mark, each computed at latents of its own."""
        batches = -(-max(_PAIRS, len(self.concepts)) // _CHUNK)
        masks = []
        for i in range(self.maps):
            gradients = self.gradients(self._loss, range(i * batches, (i + 1) * batches))
            masks.append(salient_masks(gradients, self.share, each=True))
        return {name: torch.stack([mask[name] for mask in masks]).all(dim=0) for name in masks[0]}

    def _loss(self, number: int) -> Tensor:
        """The loss at fresh latents; ``number`` cycles through the concepts."""
        return self.erasure_loss(self.noisy_batch(self.sentences(_CHUNK, number, salt=8)))
