"""SDD: distils the model's unconditional prediction into its prediction for the concept.

Kim et al., Towards Safe Self-Distillation of Internet-Scale Text-to-Image Diffusion Models, arXiv
2307.05977. Official code nannullna/safe-diffusion @ a2e820c, `train_sdd.py`. Verified in code:

* the loss ``mse( eps(x_t, c_s), sg eps(x_t, 0) )``, both of the student, so that the target may
  drift;
* an average of the student's weights, ``a <- ema a + (1 - ema) w`` after every optimizer step,
  without warm-up or bias correction: it supplies the latents ``x_t``, and is what is saved. So it
  is here: the average is the edit in checkpoints, the exported edit, and the model once training
  has ended; a checkpoint has the student too.
* several concepts: one a step in the loss, by turns, while the prompts of trajectories name all of
  them, joined by commas. Here each trajectory's prompt names its step's concept first, so that a
  text encoder that truncates the list still reads it.

Where ours differs: the official code labels the clean end of a whole rollout with the noisiest
times where it drew no steps at all (2 % of its batches); the bank's latents have their own times.
It rolls out up to 50 steps for one latent, with the current average; the bank caches every step,
and rolls out again after ``refresh`` draws (``student: true`` rolls out the average). The official
numbers are the defaults: 1e-5 (AdamW, decay 1e-4, constant) with ``ema`` 0.999, which leaves
0.999^1500 = 22 % of the original's weights in the average of 1500 steps; the 0.975 of our config
leaves 5 % after 120. It clips gradients to 1, which here the recipes' trainers do. A joined prompt
has our template; there it is the bare words.

Cost of a step: 1 forward, 1 forward and backward; a rollout costs twice its steps.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.interface import Part
from erasure_lightning.backbones.precision import promote_to_float32
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.distributed.fsdp import copy_into, full_tensor
from erasure_lightning.training.adapter_methods import PartErasure
from erasure_lightning.training.edit_state import BACKBONE_PREFIX
from erasure_lightning.training.latent_sources import NoisyBatch, SourceModels
from erasure_lightning.training.optimizers import OptimizerName


class SDD(PartErasure):
    """Safe self-distillation: trains towards the unconditional prediction, and averages weights.

    Args:
        train: Which part of the denoiser, as in ESD: ``x`` is its cross-attention.
        ema: Decay of the average at a step, from 0 (the average is the student) to below 1.
        lr: Highest learning rate.
        optimizer: As in every gradient method.
        weight_decay: As in every gradient method.
        kwargs: Arguments of `GradientErasure`, and of `PartErasure` (``rank`` for adapters).

    Raises:
        ErasureError: If ``ema`` is out of range.
    """

    default_steps = 1500

    #: The model with averaged weights; of what is edited it has copies, all else it shares.
    average: Backbone

    finalizes_edit = True

    def __init__(
        self,
        *,
        train: Part = "x",
        ema: float = 0.999,
        lr: float = 1e-5,
        optimizer: OptimizerName = "adamw",
        weight_decay: float | None = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            train=train, lr=lr, optimizer=optimizer, weight_decay=weight_decay, **kwargs
        )
        require("SDD", at_least=0, below=1, ema=ema)
        self.ema = ema
        #: The student's weights while the model has those of the average.
        self._student: dict[str, Tensor] = {}

    def adapt(self) -> None:
        """Copies the original as the average, in float32: less would round its steps away."""
        super().adapt()
        self.average = self.backbone.frozen_copy(self.editable())
        promote_to_float32(self.average.get_parameter(name) for name in self.editable())

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(x, c_e), sg eps(x, 0))``, both of the student."""
        with torch.no_grad():
            target = self.student(batch, self.backbone.unconditional(len(batch)))
        return self.prediction_error(self.student(batch), target, batch.t)

    def models(self) -> SourceModels:
        """A source that follows the student follows its average."""
        return replace(super().models(), student=self.average)

    def noisy_batch(self, sentences: PromptBatch) -> NoisyBatch:
        """Latents on trajectories of all concepts at once, for the step's own sentences."""
        return super().noisy_batch(sentences).with_sentences(sentences)

    def source_sentences(self, count: int, number: int) -> PromptBatch:
        """Sentences that name all concepts, their own first."""
        batch = super().source_sentences(count, number)
        templates = [
            template.replace("{}", self._joined(concept))
            for template, concept in zip(batch.templates, batch.concepts, strict=True)
        ]
        return batch._replace(templates=templates)

    def _joined(self, first: str) -> str:
        """``{}, heart, bomb``: a place for the first concept, and all others after it."""
        others = [concept.name for concept in self.concepts if concept.name != first]
        return ", ".join(["{}", *others])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes the step, and updates the average."""
        super().optimizer_step(*args, **kwargs)
        for mean, parameter in zip(
            self._averaged().values(), self.editable().values(), strict=True
        ):
            mean.lerp_(parameter.detach().to(mean), 1 - self.ema)

    def _averaged(self) -> dict[str, Tensor]:
        named = dict(self.average.named_parameters())
        return {name: named[name].detach() for name in self.editable()}

    def on_train_start(self) -> None:
        """Restores the student of a checkpoint."""
        super().on_train_start()
        self.write(self._student)
        self._student = {}

    def on_train_end(self) -> None:
        """Writes the average to the model, merged where it has adapters."""
        self._student = {
            name: parameter.detach().clone() for name, parameter in self.editable().items()
        }
        self.write(self._averaged())
        super().on_train_end()
        if self._merged:
            self.average = self.backbone.frozen_copy(self.editable())
            self._student = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the average as the edit, and the student beside it."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = {
            BACKBONE_PREFIX + name: full_tensor(mean) for name, mean in self._averaged().items()
        }
        checkpoint["student"] = {
            name: full_tensor(value) for name, value in (self._student or self.editable()).items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the average, and the student once training starts."""
        super().on_load_checkpoint(checkpoint)
        if self._merged:
            self.average = self.backbone.frozen_copy(self.editable())
        for name, mean in self._averaged().items():
            copy_into(mean, checkpoint["state_dict"][BACKBONE_PREFIX + name])
        self._student = dict(checkpoint.get("student", {}))
