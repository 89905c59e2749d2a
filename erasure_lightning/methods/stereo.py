"""STEREO: searches words that restore the concept, then erases all of them from the original.

Srivatsan et al., STEREO: A Two-Stage Framework for Adversarially Robust Concept Erasing from
Text-to-Image Diffusion Models, arXiv 2408.16807. Official code
koushiksrivats/robust-concept-erasing @ 86f124f, `utils/stereo.py` and `utils/apg.py`, read. With
``w_0`` the concept's own words, and ``P_c`` the part of ``eps*(c) - eps*(0)`` that is orthogonal to
``eps*(c)`` (adaptive projected guidance, Sadat et al., arXiv 2410.02416; of a velocity model, to
the noise that its prediction implies), all at ``(x_t, t)`` and of the frozen original:

* search thoroughly enough, round ``i`` of ``rounds``: trains
  ``mse( eps(w_i), eps*(w_i) - (1 + eta) P_(w_i) )`` for ``erase_steps``, and then learns the word
  ``w_(i+1)`` by concept inversion through the student (`InversionAdversary`);
* robustly erase once, from the original's weights: ``mse( eps(w_k), eps*(0) + a P_anchor - b mean_j
  P_(w_j) )`` with a random ``w_k`` of all the words in each row.

Of styles ``eps*(0)`` is the original's prediction for the sentence without the style's words
(derived; the official code guides away from words alone, without a sentence). A sentence in a style
names a thing, which the anchor's sentence names too: from the unconditional prediction ``P_anchor``
and ``P_(w_j)`` cancel it, and the target is a prediction of no thing, in any style.

The official code computes something else (derived from it):

* its projection is called with the parallel part's weight at 1, at which ``P`` is the whole
  difference and there is no projection. Ours projects; ``parallel: 1`` is the official;
* ``b`` is 3 at its default scale 2 ("+1 of the scale you would like"): the sign of a negative scale
  is taken before the 1 is subtracted, so that anchors have 1 and words 3. Ours has 1 for both;
* in the search the teacher is the student of the round before, here the original.

Official inversion starts at a word of choice (``person``), in captions, and compares with the noise
of 500 generated images, one a step; ours starts at the mean of the concept's own words, in the
run's sentences, and compares with the original's prediction at the method's own latents. Each round
has an optimizer of its own there, here the search has one. Official latents are the student's for
the word that is erased, and anchors are sentences of a file; here latents are those of ``latents``,
and the anchor's sentence is the concept's with other words. A concept without an anchor has no
``P_anchor``.

Its numbers for SD 1.4: 4 rounds (2 for nudity) of 200 steps of 1 sentence at 5e-6 and 3000 steps of
inversion at 5e-3, then 200 steps at 2e-5 (AdamW, constant), all but cross-attention. Those are the
defaults. ``erase_steps`` counts for each concept, as ``--data.steps_per_concept`` does, which must
be more than ``rounds`` times as many.

Cost: of a step of the search 1 forward of the original and 1 forward and backward, of a word
``attack_steps`` forwards and backwards, of a last step ``rounds`` forwards of the original and 1
forward and backward; of a style 1 forward of the original more where no bank has stored it;
besides, the bank's.
"""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Part
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.distributed.fsdp import full_tensor
from erasure_lightning.training.adapter_methods import PartErasure
from erasure_lightning.training.adversary_kinds import InversionAdversary
from erasure_lightning.training.latent_sources import NoisyBatch
from erasure_lightning.training.optimizers import OptimizerName


class STEREO(PartErasure):
    """Searches words that restore the concept, then erases them all at once from the original.

    Args:
        train: Which part of the denoiser, as in ESD: ``u`` is all but its cross-attention.
        rounds: Number of words that are searched for each concept, at least 1.
        erase_steps: Steps for each concept in each round, at least 1.
        eta: Negative guidance of the search's target, as in ESD; at least 0.
        attack_steps: Steps of each concept inversion, at least 1.
        attack_lr: Rate of its AdamW, above 0.
        anchor: ``a``, scale of the anchor's guidance in the last target, at least 0.
        negative: ``b``, scale of the words' guidance in the last target, at least 0; 3 in the
            official code.
        parallel: Weight of the part of a guidance that is parallel to its prediction, 0..1; 1 in
            the official code.
        search_lr: Learning rate of the search, at least 0.
        lr: Highest learning rate of the last stage.
        optimizer: As in every gradient method.
        kwargs: Arguments of `GradientErasure`, and of `PartErasure` (``rank`` for adapters).

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        train: Part = "u",
        rounds: int = 4,
        erase_steps: int = 200,
        eta: float = 0.0,
        attack_steps: int = 3000,
        attack_lr: float = 5e-3,
        anchor: float = 1.0,
        negative: float = 1.0,
        parallel: float = 0.0,
        search_lr: float = 5e-6,
        lr: float = 2e-5,
        optimizer: OptimizerName = "adamw",
        **kwargs: Any,
    ) -> None:
        counts = {"rounds": rounds, "erase_steps": erase_steps, "attack_steps": attack_steps}
        require("STEREO", at_least=1, **counts)
        scales = {"eta": eta, "anchor": anchor, "negative": negative, "search_lr": search_lr}
        require("STEREO", at_least=0, **scales)
        require("STEREO", at_least=0, at_most=1, parallel=parallel)
        require("STEREO", above=0, attack_lr=attack_lr)
        self.inversion = InversionAdversary(words=rounds, steps=attack_steps, lr=attack_lr)
        super().__init__(
            train=train, lr=lr, optimizer=optimizer, adversary=self.inversion, **kwargs
        )
        self.rounds = rounds
        self.erase_steps = erase_steps * len(self.concepts)
        self.eta = eta
        self.anchor = anchor
        self.negative = negative
        self.parallel = parallel
        self.search_lr = search_lr
        #: Adapters as they begin, to which the last stage returns.
        self._initial: dict[str, Tensor] = {}

    def adapt(self) -> None:
        """Installs the adapters, if there are any, and copies them."""
        super().adapt()
        if self.rank is not None:
            self._initial = {n: p.detach().clone() for n, p in self.trainable().items()}

    @property
    def stage(self) -> int:
        """Number of the round, from 0 on; `rounds` in the last stage."""
        return min(self.global_step // self.erase_steps, self.rounds)

    def on_train_start(self) -> None:
        """Warns where the run ends before the last stage."""
        super().on_train_start()
        steps = self.training_steps
        searched = self.rounds * self.erase_steps
        if steps is not None and steps <= searched:
            rank_zero_warn(
                f"STEREO erases after {searched} steps of its search; found a run of {steps}, whose"
                " edit is that of the search. Train for more steps, or lower rounds or erase_steps."
            )

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        """Learns a word where a round has ended, and returns to the original after the last."""
        super().on_train_batch_start(batch, batch_idx)
        if len(self.inversion.learned) < self.stage:
            self.inversion.learn(len(batch.concepts), self.global_step, self.adversary_models())
        if self.global_step == self.rounds * self.erase_steps:
            self._restart()

    def _restart(self) -> None:
        """Returns the trained weights to the original's, and the optimizer to its start."""
        names = () if self._initial else self.trainable()
        original = {name: full_tensor(self.original.get_parameter(name)) for name in names}
        self.write(original | self._initial)
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Sets the rate of the search; that of the last stage is set after every step."""
        if self.stage < self.rounds and self.lr:
            for group in optimizer.param_groups:
                group["lr"] *= self.search_lr / self.lr

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(w_i), eps*(w_i) - (1 + eta) P_(w_i))``, in the last stage that of all words."""
        count = len(batch)
        if self.stage == self.rounds:
            words = torch.randint(self.rounds + 1, (count,))
            target = self.robust_target(batch)
        else:
            words = torch.full((count,), self.stage)
            target = self.search_target(batch, words)
        prediction = self.student(batch, self.conditioning(batch, words))
        return self.prediction_error(prediction, target, batch.t)

    def conditioning(self, batch: NoisyBatch, words: Tensor) -> Conditioning:
        """The batch's sentences with words by number ``(B,)``, 0 being the concept's own."""
        plain = self.backbone.encode(batch.prompts)
        if not words.any():
            return plain
        choice = (words - 1).clamp(min=0)
        learned = self.inversion.encode_learned(batch.sentences, choice, self.backbone)
        return plain.where(words == 0, learned)

    @torch.no_grad()
    def search_target(self, batch: NoisyBatch, words: Tensor) -> Tensor:
        """``eps*(w_i) - (1 + eta) P_(w_i)``, ``(B, C, h, w)``."""
        prediction = self._original(batch, words)
        return prediction - (1 + self.eta) * self.guidance(batch, prediction)

    @torch.no_grad()
    def robust_target(self, batch: NoisyBatch) -> Tensor:
        """``eps*(0) + a P_anchor - b mean_j P_(w_j)``, ``(B, C, h, w)``; of styles `neutral`."""
        predictions = [
            self._original(batch, torch.full((len(batch),), number))
            for number in range(self.rounds + 1)
        ]
        terms = torch.stack([self.guidance(batch, prediction) for prediction in predictions])
        target = self.neutral(batch) - self.negative * terms.mean(dim=0)
        if not (self.anchor and self.original.any_rank(any(batch.sentences.anchors))):
            return target
        guided = self.guidance(batch, batch.teacher.anchor)
        anchored = torch.tensor([bool(a) for a in batch.sentences.anchors], device=guided.device)
        return target + self.anchor * guided * anchored.view(-1, 1, 1, 1)

    def _original(self, batch: NoisyBatch, words: Tensor) -> Tensor:
        """The original's predictions for words, by number."""
        if not words.any():
            return batch.teacher.concept
        return self.original.denoise(batch.x, batch.t, self.conditioning(batch, words))

    def neutral(self, batch: NoisyBatch) -> Tensor:
        """What guidance is measured from, ``(B, C, h, w)``.

        The original's unconditional predictions; of styles those for the sentence without the
        style's words, so that the thing of the sentence is no part of its guidance.
        """
        are_styles = [concept.kind == "style" for concept in self.concepts]
        if not any(are_styles):
            return batch.teacher.unconditional
        if all(are_styles):
            return batch.teacher.wordless
        rows = torch.tensor([are_styles[i] for i in batch.indices], device=batch.x.device)
        teacher = batch.teacher
        return torch.where(rows.view(-1, 1, 1, 1), teacher.wordless, teacher.unconditional)

    def guidance(self, batch: NoisyBatch, prediction: Tensor) -> Tensor:
        """``P`` of the original's prediction: its parallel part is weighted, ``(B, C, h, w)``."""
        difference = prediction - self.neutral(batch)
        noise = self.original.process.epsilon(prediction, batch.x, batch.t)
        rows = noise.flatten(1)
        share = (difference.flatten(1) * rows).sum(dim=1) / rows.square().sum(dim=1)
        along = share.view(-1, 1, 1, 1) * noise
        return difference - (1 - self.parallel) * along
