"""Local predicted-noise preservation, the second retention term of SAGE (arXiv 2506.09363).

Stated in the paper; the form is inferred with high confidence. Cost per step: two denoiser forwards
and one backward on a minibatch of prompts; one forward less where a bank has cached the original's
predictions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.distributed.collectives import gather_on_first_rank, of_this_rank
from erasure_lightning.errors import ErasureError
from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import LatentSource, PureNoise, SourceModels


class LocalNoisePreservation(RetentionCallback):
    """Retains the denoiser's predictions on retained prompts.

    ``E |eps(x, t, r) - eps*(x, t, r)|^2`` for retained prompts ``r``.

    Args:
        weight: Weight of the term; 0.3, and 5 prompts, in AdvUnlearn.
        batch_size: Prompts sampled a step, on each rank.
        latents: Source of ``(x, t)``, for instance trajectories of the original on retained
            prompts; by default pure noise at random times, which covers more prompts at less cost.
        kwargs: Arguments of `RetentionCallback`.
    """

    name = "local"

    def __init__(
        self,
        weight: float = 0.3,
        batch_size: int = 5,
        latents: LatentSource | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight, **kwargs)
        self.batch_size = batch_size
        self.latents = PureNoise() if latents is None else latents

    def prepare(self, module: GradientErasure) -> None:
        """Generates the latents that are generated once.

        Raises:
            ErasureError: If its latents have the prompts of the method, or of another callback.
        """
        others = [each for each in (module, *module.retention) if each is not self]
        sharing = [each for each in others if getattr(each, "latents", None) is self.latents]
        if sharing and self.latents.has_sentences:
            raise ErasureError(
                f"{type(self).__name__} needs latents of its own, of retained prompts; found those"
                f" of {type(sharing[0]).__name__}. Give it another {type(self.latents).__name__}."
            )
        self.latents.prepare(self._models(module))

    def _models(self, module: GradientErasure) -> SourceModels:
        """The models of a latent source, with retained prompts in the concepts' place."""
        seed = derive_seed(module.seed, module.global_rank, 3)

        def sentences(count: int, number: int) -> PromptBatch:
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(self.retained), generator=generator)
            # Each set begins where the previous one ended.
            chosen = order.roll(-number * count)[:count].tolist()
            return PromptBatch.without_concepts([self.retained[i] for i in chosen])

        return SourceModels(module.original, module.backbone, sentences, 1, seed)

    def term(self, module: GradientErasure) -> Tensor:
        """Mean squared change of the predictions, a scalar."""
        batch = self.latents.draw(self._sentences(), self._models(module))
        retained = module.backbone.encode(batch.prompts)
        return mse_loss(module.student(batch, retained), batch.teacher.concept)

    def _sentences(self) -> PromptBatch:
        """Retained prompts of a step; as many of any kind where latents have their own."""
        own = self.latents.has_sentences
        rows = [0] * self.batch_size if own else self.draw(self.batch_size)
        return PromptBatch.without_concepts([self.retained[i] for i in rows])

    def state_dict(self) -> dict[str, Any]:
        """The latents of every rank, from which a resumed run draws the same."""
        state = self.latents.state_dict()
        return {"latents": gather_on_first_rank(state)} if state else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the latents; a rank that had none generates its own."""
        if state := of_this_rank(state_dict.get("latents", [])):
            self.latents.load_state_dict(state)
