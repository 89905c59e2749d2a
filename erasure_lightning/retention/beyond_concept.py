"""Beyond-concept regularisation, the retention term of RealEra (arXiv 2410.09140).

Stated in the paper: states beyond the concept's neighbourhood are retained, in both stages.
The form is ours: random text states orthogonal to the concept's, since states that overlap it would
retain the concept itself. No retained prompts are needed. Cost per step: two denoiser forwards
and one backward; in a closed form, one Gram matrix.
"""

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import pure_noise
from erasure_lightning.training.neighbours import (
    beyond_predictions,
    orthogonal_gram,
)


class BeyondConceptRegularization(RetentionCallback):
    """Retains predictions at random states beyond the concepts'.

    ``E |eps(x, t, b) - eps*(x, t, b)|^2`` at states ``b`` orthogonal to the concepts'.

    Args:
        weight: Weight of the term; in a closed form, of all concepts together, which share it.
        batch_size: Concept sentences a step whose states are replaced, on each rank.
        ramp: Steps over which the weight rises from 0; at least 0.
    """

    name = "beyond"

    def __init__(self, weight: float = 1.0, batch_size: int = 4, ramp: int = 0) -> None:
        super().__init__(weight, prompts=[""], ramp=ramp)
        self.batch_size = batch_size

    def prepare(self, module: GradientErasure) -> None:
        """Collects the concepts' sentences."""
        self._prompts = [prompt for batch in _sentences(module) for prompt in batch.prompts]
        if not module.backbone.edits_denoiser(module.editable()):
            rank_zero_warn(
                f"{type(self).__name__} retains the denoiser's predictions at text states, and"
                f" {type(module).__name__} edits no denoiser: it will stay at 0."
                " GlobalSemanticAlignment retains the text encoder's states."
            )

    def term(self, module: GradientErasure) -> Tensor:
        """Mean squared change of the predictions, a scalar."""
        rows = torch.randperm(len(self._prompts))[: self.batch_size].tolist()
        prompts = [self._prompts[i] for i in rows]
        x, t = pure_noise(module.backbone, len(prompts))
        return mse_loss(*beyond_predictions(module.backbone, module.original, x, t, prompts))

    def gram(self, module: ErasureModule, source: TextInput) -> Tensor:
        """The limit of infinitely many states beyond, as in stage A (`Mining`), ``(D, D)``."""
        return torch.stack([_gram(module, batch, source) for batch in _sentences(module)]).mean(
            dim=0
        )


def _sentences(module: ErasureModule) -> list[PromptBatch]:
    """The sentences of every concept."""
    return [module.prompts.sentences(index) for index in range(len(module.concepts))]


def _gram(module: ErasureModule, batch: PromptBatch, source: TextInput) -> Tensor:
    conditioning = module.original.encode(batch.prompts)
    rows = source.rows(conditioning)
    mined = source.reads_concept(conditioning)
    return orthogonal_gram(rows[mined]) / int(source.read(conditioning).sum())
