"""Beyond-concept regularisation, RealEra's retention term (arXiv 2410.09140).

Stated in the paper: what lies beyond the concept's neighbourhood keeps its image, in both stages.
The form is ours: random text states orthogonal to the concept's, for those that overlap it ask the
concept itself to stay. It needs no list of what to retain. Cost per step: two denoiser forwards and
one backward; in a closed form, one Gram matrix.
"""

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import pure_noise
from erasure_lightning.training.neighbours import beyond_drift, beyond_gram, sentences


class BeyondConceptRegularization(RetentionCallback):
    """Keeps predictions at random states beyond the concepts' as they were: ``E |eps(x, t, b) -
    eps*(x, t, b)|^2``.

    Args:
        weight: Of the term, or in a closed form of all concepts together, which share it.
        batch_size: Concept sentences a step whose states are exchanged, on each rank.
        ramp: Steps over which the weight rises from 0; at least 0.
    """

    name = "beyond"

    def __init__(self, weight: float = 1.0, batch_size: int = 4, ramp: int = 0) -> None:
        super().__init__(weight, prompts=[""], ramp=ramp)
        self.batch_size = batch_size

    def prepare(self, module: GradientErasure) -> None:
        """Write the concepts' sentences down."""
        self._asked = [prompt for batch in _batches(module) for prompt in batch.prompts]
        if not module.backbone.edits_denoiser(module.editable()):
            rank_zero_warn(
                f"{type(self).__name__} holds what the denoiser makes of text states, and"
                f" {type(module).__name__} edits no denoiser: it will stay at 0."
                " GlobalSemanticAlignment holds what the text encoder says."
            )

    def term(self, module: GradientErasure) -> Tensor:
        """Mean squared change of the predictions, a scalar."""
        prompts = [
            self._asked[i] for i in torch.randperm(len(self._asked))[: self.batch_size].tolist()
        ]
        x, t = pure_noise(module.backbone, len(prompts))
        return beyond_drift(module.backbone, module.original, x, t, prompts)

    def gram(self, module: ErasureModule, source: TextInput) -> Tensor:
        """What infinitely many states beyond come to, ``(D, D)`` in float64, as in stage A
        (`Mining`).
        """
        return torch.stack([_gram(module, batch, source) for batch in _batches(module)]).mean(dim=0)


def _batches(module: ErasureModule) -> list[PromptBatch]:
    """The sentences of every concept."""
    vocabulary = Vocabulary(module.original.world, module.concepts)
    return [sentences(concept, vocabulary) for concept in module.concepts]


def _gram(module: ErasureModule, batch: PromptBatch, source: TextInput) -> Tensor:
    plain = module.original.encode(batch.prompts)
    rows, mined = source.rows(plain), source.from_concept(plain)
    return beyond_gram(rows[mined]) / rows[..., 0].numel()
