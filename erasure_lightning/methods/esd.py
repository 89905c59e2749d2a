"""ESD: erasing a concept by guiding the model away from what it says of it.

Gandikota et al., Erasing Concepts from Diffusion Models, arXiv 2303.07345. Official code
rohitgandikota/erasing, read at b8aeab6 (the paper's, "2023") and at 25613d2 (its rewrite, "2025").
With ``D*(c) = eps*(c) - eps*(0)``, all at ``(x_t, t)`` and of the frozen original, the loss is
(verified in code)

    ``mse( eps(c_f), eps*(c_f) - (1 + eta) D*(c_e) )``

where ``c_f``, the sentence that is edited, is the concept's own ``c_e`` unless ``erase_from`` says
otherwise; then the target is the paper's ``eps*(0) - eta D*(c_e)``.

Two numbers have been called eta. Ours is that of 2023. The rewrite's ``negative_guidance``
multiplies ``D*(c_e)`` in ``eps*(c_f) - negative_guidance D*(c_e)``: it is ours plus 1, so that its
default 2 is our 1 and nothing changed but the name. (A second script of the rewrite,
`alt_esd_diffusers.py`, has 2 in the paper's form: twice the push.)

Whose latents: the paper rolls out the student (``student: true`` and a ``refresh`` in the bank),
the rewrite the frozen original (the bank's default); both at guidance 3 and with ``c_f``, as here.
There a rollout of up to 50 steps ends in one latent; ours keeps every step of it, and the two
predictions of the original that were made there.

Where ours differs: the rewrite trains pictures of 1024 pixels also where the model's are 512, ours
the model's own; it trains bfloat16 weights, whose rounding swallows most updates of its rate 5e-5;
the default here is that of 2023, 1e-5 (1000 steps in float32). Latents of 2023 lie 39 to 58 of 1000
times cleaner than their time says; ours as it says. Its parts spare norms (2025) or the output and
time layers (2023); ``u`` and ``all`` here spare nothing. Their batches are single latents, ours (in
the config) 16: at equal work fewer and better-founded steps of Adam keep more of the rest.

Cost of a step on a bank that is not refreshed: 1 forward and backward, none of the original (2023:
51 forwards more). The rollouts cost twice their steps, once.
"""

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.interface import Part
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import NoisyBatch


class ESD(GradientErasure):
    """Erased Stable Diffusion: predicts for the concept the opposite of what calls it.

    Args:
        train: Which part of the denoiser: ``x`` its cross-attention (styles, and what is named),
            ``x-strict`` keys and values alone, ``u`` all but cross-attention (what appears
            unnamed), ``all``.
        eta: Negative guidance ``eta`` of ``eps*(0) - eta (eps*(c_e) - eps*(0))``, at least 0; at 0
            the concept is said like the empty prompt. The rewrite's number is this plus 1.
        erase_from: Whose sentences are edited: the ``concept``'s own, or the ``anchor``'s, which
            lose the concept's direction (glasses, erased from a person) while the concept's own
            stay as they are.
        lr: Highest learning rate.
        kwargs: Arguments of every gradient method.

    Raises:
        ErasureError: If eta is negative, or concepts have no anchor that they could be erased from.
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
        super().__init__(lr=lr, **kwargs)
        if eta < 0:
            raise ErasureError(
                f"ESD needs eta of at least 0; found {eta}. The 2025 code's number is this plus 1."
            )
        alone = [c.name for c in self.concepts if not c.anchor]
        if erase_from == "anchor" and alone:
            raise ErasureError(
                f"ESD with erase_from 'anchor' needs an anchor a concept; {alone[0]!r} has none."
            )
        self.train_part, self.eta, self.erase_from = train, eta, erase_from

    def editable(self) -> dict[str, nn.Parameter]:
        """The part of the denoiser that ``train`` names."""
        return self.backbone.denoiser_parameters(self.train_part)

    def noisy_batch(self, sentences: PromptBatch) -> NoisyBatch:
        """Latents on trajectories of the sentences that are edited; those of anchors come as the
        concepts' own.
        """
        return super().noisy_batch(self._edited(sentences))

    def source_sentences(self, count: int, number: int) -> PromptBatch:
        """The sentences that are edited."""
        return self._edited(super().source_sentences(count, number))

    def _edited(self, batch: PromptBatch) -> PromptBatch:
        """Concepts and anchors, with their places exchanged where it is the anchors' sentences that
        are edited.
        """
        turned = self.erase_from == "anchor"
        return batch._replace(concepts=batch.anchors, anchors=batch.concepts) if turned else batch

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(c_f), eps*(c_f) - (1 + eta) (eps*(c_e) - eps*(0)))``; ``batch`` as
        `noisy_batch` gives it.
        """
        teacher = batch.teacher
        erased = teacher.concept if self.erase_from == "concept" else teacher.anchor
        target = teacher.concept - (1 + self.eta) * (erased - teacher.unconditional)
        return mse_loss(self.student(batch), target)
