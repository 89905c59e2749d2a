"""ESD: erases a concept by negative guidance, away from the model's own prediction for it.

Gandikota et al., Erasing Concepts from Diffusion Models, arXiv 2303.07345. Official code
rohitgandikota/erasing, read at b8aeab6 (the paper's, "2023") and at 2ff19a1 (its rewrite, of 2025
and 2026, also for SDXL and FLUX.1). With ``D*(c) = eps*(c) - eps*(0)``, all at
``(x_t, t)`` and of the frozen original, the loss is (verified in code)

    ``mse( eps(c_f), eps*(c_f) - (1 + eta) D*(c_e) )``

where the edited sentence ``c_f`` is the concept's own ``c_e`` (by default: the target is then the
paper's ``eps*(0) - eta D*(c_e)``) or, with ``erase_from="anchor"``, the anchor's.

Two numbers are called eta. Ours is that of 2023. The rewrite's ``negative_guidance`` multiplies
``D*(c_e)`` in ``eps*(c_f) - negative_guidance D*(c_e)``: it is ours plus 1, so that its default 2
is our 1 and only the name has changed. (A second script of the rewrite, `alt_esd_diffusers.py`, has
2 in the paper's form: twice the push.)

Latents: the paper rolls out the student (``student: true`` and a ``refresh`` in the bank), the
rewrite the frozen original (the bank's default); both at guidance 3 and with ``c_f``, as here.
An official rollout of up to 50 steps yields one latent; ours caches every step of it, with the two
predictions of the original at that step.

Where ours differs: the rewrite trains bfloat16 weights, whose rounding swallows most updates of its
rate 5e-5, and before 2026 at 1024 pixels also where the model's size is 512, ours at the model's
own; the default here is that of 2023, 1e-5 (1000 steps in float32). Latents of 2023 are 39 to 58
(of 1000) times cleaner than their time; ours have the noise of their time. Its parts exclude norms
(the rewrite) or the output and time layers (2023); ``u`` and ``all`` here exclude none. Of FLUX.1
its ``x-strict`` is the keys and values of pixels, ours those of the text. Official batches are
single latents, those of our config have 16: with equal work, fewer and less noisy steps of Adam
retain more of other concepts.

Cost of a step on a bank that is not refreshed: 1 forward and backward, none of the original (2023:
51 forwards more). The rollouts cost twice their steps, once.
"""

from typing import Any, Literal

from torch import Tensor

from erasure_lightning.backbones.interface import Part
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.adapter_methods import PartErasure
from erasure_lightning.training.latent_sources import NoisyBatch


class ESD(PartErasure):
    """Erased Stable Diffusion: trains the concept's prediction towards negative guidance.

    Args:
        train: Which part of the denoiser: ``x`` its cross-attention (styles, and what is named),
            ``x-strict`` keys and values alone, ``u`` all but cross-attention (what appears
            unnamed), ``all``.
        eta: Negative guidance ``eta`` of ``eps*(0) - eta (eps*(c_e) - eps*(0))``, at least 0; at 0
            the target is the unconditional prediction. The rewrite's number is this plus 1.
        erase_from: Whose sentences are edited: the ``concept``'s own, or the ``anchor``'s, which
            lose the concept's direction (glasses, erased from a person) while the concept's own
            are not trained.
        lr: Highest learning rate.
        kwargs: Arguments of `GradientErasure`, and of `PartErasure` (``rank`` for adapters).

    Raises:
        ErasureError: If eta is negative, a concept has no anchor to be erased from, or an adversary
            is to erase from anchors.
    """

    def __init__(
        self,
        *,
        train: Part = "x",
        eta: float = 1.0,
        erase_from: Literal["concept", "anchor"] = "concept",
        lr: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(train=train, lr=lr, **kwargs)
        if eta < 0:
            raise ErasureError(
                f"ESD needs eta of at least 0; found {eta}. The official rewrite's number is this"
                " plus 1."
            )
        if erase_from == "anchor" and self.adversary is not None:
            raise ErasureError(
                "ESD with erase_from 'anchor' takes no adversary: it does not edit the concept's"
                " prompts. Leave it out."
            )
        without_anchor = [concept.name for concept in self.concepts if not concept.anchor]
        if erase_from == "anchor" and without_anchor:
            raise ErasureError(
                "ESD with erase_from 'anchor' needs an anchor a concept;"
                f" {without_anchor[0]!r} has none."
            )
        self.eta = eta
        self.erase_from = erase_from

    def noisy_batch(self, sentences: PromptBatch) -> NoisyBatch:
        """Latents on trajectories of the edited sentences, with these in the concepts' place."""
        return super().noisy_batch(self._edited(sentences))

    def source_sentences(self, count: int, number: int) -> PromptBatch:
        """The edited sentences, for the bank's rollouts."""
        return self._edited(super().source_sentences(count, number))

    def _edited(self, batch: PromptBatch) -> PromptBatch:
        """The edited sentences ``c_f``: with ``erase_from="anchor"`` the two places are swapped."""
        if self.erase_from == "concept":
            return batch
        return batch._replace(concepts=batch.anchors, anchors=batch.concepts)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(c_f), eps*(c_f) - (1 + eta) (eps*(c_e) - eps*(0)))``, ``c_f`` in ``batch``."""
        teacher = batch.teacher
        edited = teacher.concept
        erased = teacher.concept if self.erase_from == "concept" else teacher.anchor
        target = edited - (1 + self.eta) * (erased - teacher.unconditional)
        return self.prediction_error(self.student(batch), target, batch.t)
