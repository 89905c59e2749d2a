"""Receler: trains erasers after attention to text against adversarial embeddings.

Huang et al., Receler: Reliable Concept Erasing of Text-to-Image Diffusion Models via Lightweight
Erasers, arXiv 2311.17717. Official code jasper0314-huang/Receler @ 3ccedc9. All at ``(x_t, t)``,
erasers (`adapters.eraser`) in ``eps`` alone, ``c'`` the concept's states with adversarial rows
``A`` in them:

    attack  ``A <- Adam( mse( eps(c'), eps*(c) ) )``, some steps
    erase   ``L = mse( eps(c'), eps*(0) - eta (eps*(c) - eps*(0)) ) + 0.1 L_reg``

    ``L_reg = mean_layers sum_pixels (1 - M) mean_channels E(h)^2 / sum_pixels (1 - M)``

``M`` are the pixels that attend to the concept's words in the original, thresholded at a tenth of
the range in the layers of a quarter of the latents' side (here of the nearest side, where a model
has no such layers), at each eraser's own resolution. Verified in code, with the 16 rows from the
end of the text on, sampled from ``U[0, 1)``, Adam at 0.1 with ``L2`` decay 0.1, and 50 attack steps
before each step of the erasers, on the same latents.

If the official attack worked, erasing would use the rows before the last attack step; ours uses
those after it.

Where the official code has a bug and ours differs: it writes those rows to a copy, so that no
prediction depends on them, and its runs are ESD's loss on erasers, with a mask, and without an
attack. Here the rows are in the sentence. Without attack steps ours still erases; the official code
trains no eraser then.

A concept's rows and the state of their Adam persist between steps, as there, and are saved with a
checkpoint: a step's attack continues the last one. On the emoji world, one attack step a step and
the official decay leave the rows near zero (deviation 0.004 to 0.01 after 100 steps), so that the
erasers are trained against empty rows more than against an attack; ``attack_decay: 0`` is an
option. Official, and the defaults: 3e-4 (constant), 50 attack steps; 500 steps, batch 1, SD 1.4,
latents 39 to 58 times cleaner than their time, on the student's rollout; ours are the bank's
(``student: true`` for the rollout).

On SD 3 and FLUX erasers act on what joint attention returns for pixels, wherever text has layers of
its own (not in FLUX's single blocks); a pooled vector remains the concept's in ``c'``. The official
code has SD 1.4 alone.

Cost of a sentence: 1 forward of the original for the mask, ``attack_steps + 1`` forwards and
backwards.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from erasure_lightning.adapters.base import AdapterPlan
from erasure_lightning.adapters.eraser import eraser_outputs, mean_square_outside
from erasure_lightning.backbones.conditioning import CONCEPT, END, MISSING, Conditioning
from erasure_lightning.checks import require
from erasure_lightning.distributed.collectives import gather_on_first_rank, of_this_rank
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.adapter_methods import AdapterErasure
from erasure_lightning.training.attention_masks import concept_mask
from erasure_lightning.training.latent_sources import NoisyBatch


class AdversarialRows:
    """Adversarial rows of each concept, with an Adam optimizer; both persist between steps.

    Args:
        names: The concepts' names.
        shape: Number of rows of each and their width, ``(n, D)``.
        seed: Seed of the initial rows, sampled from ``U[0, 1)``.
        device: Device of the rows.
        settings: Arguments of Adam.
    """

    def __init__(
        self,
        names: Sequence[str],
        shape: tuple[int, int],
        seed: int,
        device: torch.device,
        settings: dict[str, float],
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        initial = torch.rand(len(names), *shape, generator=generator)
        self._rows = {
            name: rows.clone().to(device).requires_grad_(True)
            for name, rows in zip(names, initial, strict=True)
        }
        self._adam = Adam(self._rows.values(), **settings)  # type: ignore[arg-type]

    def of(self, names: Sequence[str]) -> Tensor:
        """The rows of each concept in ``names``, ``(B, n, D)``."""
        return torch.stack([self._rows[name] for name in names])

    def step(self, loss: Tensor) -> None:
        """Takes a step of Adam on the loss; skips concepts that it does not depend on."""
        gradients = torch.autograd.grad(loss, list(self._rows.values()), allow_unused=True)
        for rows, gradient in zip(self._rows.values(), gradients, strict=True):
            rows.grad = gradient
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        """The rows and the optimizer's state."""
        return {
            "rows": {name: rows.detach() for name, rows in self._rows.items()},
            "adam": self._adam.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of `state_dict`."""
        for name, rows in self._rows.items():
            rows.copy_(state["rows"][name])
        self._adam.load_state_dict(state["adam"])


class Receler(AdapterErasure):
    """Reliable erasing with lightweight erasers, adversarial rows and concept-localised changes.

    Args:
        eta: Negative guidance ``eta`` of the target, at least 0.
        rank: Rank of each eraser, at least 1.
        rows: Number of adversarial rows from the end of a sentence on, as far as there is room; at
            least 1.
        attack_steps: Attack steps before each step, at least 0; at 0 there are no rows.
        attack_lr: Learning rate of the attack's Adam, above 0.
        attack_decay: ``L2`` decay of the attack's Adam, at least 0.
        mask_weight: Weight of ``L_reg``, at least 0.
        threshold: Share of the range of attention from which a pixel shows the concept, 0..1.
        lr: Highest learning rate.
        kwargs: Arguments of `GradientErasure`.

    Raises:
        ErasureError: If a number is out of range.
    """

    needs = frozenset({"attention maps"})

    default_steps = 500

    repeated_call = "attack_step"

    def __init__(
        self,
        *,
        eta: float = 1.0,
        rank: int = 128,
        rows: int = 16,
        attack_steps: int = 50,
        attack_lr: float = 0.1,
        attack_decay: float = 0.1,
        mask_weight: float = 0.1,
        threshold: float = 0.1,
        lr: float = 3e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, **kwargs)
        require("Receler", at_least=1, rank=rank, rows=rows)
        require("Receler", at_least=0, eta=eta, mask_weight=mask_weight)
        require("Receler", at_least=0, attack_steps=attack_steps, attack_decay=attack_decay)
        require("Receler", above=0, attack_lr=attack_lr)
        require("Receler", at_least=0, at_most=1, threshold=threshold)
        self.eta = eta
        self.rank = rank
        self.rows = rows
        self.attack_steps = attack_steps
        self.attack_lr = attack_lr
        self.attack_decay = attack_decay
        self.mask_weight = mask_weight
        self.threshold = threshold
        self.adversarial_rows: AdversarialRows | None = None
        #: State of the rows in a checkpoint, until they are created.
        self._restored: dict[str, Any] | None = None

    def plan(self) -> AdapterPlan:
        """An eraser after each attention in which pixels meet text."""
        layers = [
            name.removeprefix("denoiser.") for name in self.backbone.adaptable("text attention")
        ]
        return AdapterPlan("eraser", layers, {"rank": self.rank})

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(c'), eps*(0) - eta (eps*(c) - eps*(0))) + 0.1 L_reg``, after an attack."""
        plain = self.backbone.encode(batch.prompts)
        with torch.no_grad(), self.original.attention() as maps:
            concept = self.original.denoise(batch.x, batch.t, plain)
        prompts = self.concept_conditioning(batch)
        unconditional = batch.teacher.unconditional
        for _ in range(self.attack_steps):
            self.attack_step(prompts, batch, concept)
        with torch.no_grad():
            attacked = self.attacked(prompts, batch)
        with eraser_outputs(self.backbone.denoiser) as outputs:
            prediction = self.student(batch, attacked)
        target = unconditional - self.eta * (concept - unconditional)
        erasure = self.prediction_error(prediction, target, batch.t)
        pixels = _mask_pixels(maps, batch.x)
        masks = concept_mask(maps, plain.positions(CONCEPT), self.threshold, pixels)
        return erasure + self.mask_weight * mean_square_outside(outputs, masks)

    def attack_step(self, prompts: Conditioning, batch: NoisyBatch, concept: Tensor) -> None:
        """Moves the adversarial rows towards the original's prediction for the concept.

        Args:
            prompts: Conditioning of the batch's concept prompts, ``(B, L, D)``.
            batch: Noisy latents and sentences of the loss.
            concept: The original's predictions for the concept, ``(B, C, h, w)``.
        """
        prediction = self.student(batch, self.attacked(prompts, batch))
        loss = self.prediction_error(prediction, concept, batch.t)
        self.rows_like(prompts.tokens).step(loss)

    def attacked(self, prompts: Conditioning, batch: NoisyBatch) -> Conditioning:
        """``c'``: the states with adversarial rows from the end of text on, where there are any.

        All of them are read, also by a denoiser that leaves out padding.
        """
        if not self.attack_steps:
            return prompts
        rows = self.rows_like(prompts.tokens).of(batch.sentences.concepts).to(prompts.tokens)
        position = prompts.from_end()
        number = position.clamp(0, self.rows - 1).unsqueeze(2).expand_as(prompts.tokens)
        inside = (position >= 0) & (position < self.rows) & ~prompts.positions(MISSING)
        # Stable Diffusion 3 pads CLIP's states with zeros to T5's width; these stay.
        written = inside.unsqueeze(2) & (prompts.tokens != 0)
        tokens = torch.where(written, rows.gather(1, number), prompts.tokens)
        return replace(prompts, tokens=tokens, roles=prompts.roles.masked_fill(inside, END))

    def rows_like(self, states: Tensor) -> AdversarialRows:
        """The adversarial rows; created, or restored from a checkpoint, in the states' width."""
        if self.adversarial_rows is None:
            self.adversarial_rows = AdversarialRows(
                [concept.name for concept in self.concepts],
                (self.rows, states.shape[2]),
                derive_seed(self.seed, 6),
                states.device,
                {"lr": self.attack_lr, "weight_decay": self.attack_decay},
            )
            if self._restored:
                self.adversarial_rows.load_state_dict(self._restored)
        return self.adversarial_rows

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the adversarial rows of every rank."""
        super().on_save_checkpoint(checkpoint)
        if self.adversarial_rows is not None:
            checkpoint["adversaries"] = gather_on_first_rank(self.adversarial_rows.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the adversarial rows."""
        super().on_load_checkpoint(checkpoint)
        self._restored = of_this_rank(checkpoint.get("adversaries", []))
        self.adversarial_rows = None


def _mask_pixels(maps: dict[str, Tensor], x: Tensor) -> int:
    """Pixels of the attention layers whose side is nearest to a quarter of the latents'."""
    pixels = x[0, 0].numel() / 16
    return min(
        (probabilities.shape[2] for probabilities in maps.values()),
        key=lambda count: abs(count - pixels),
    )
