"""EraseFlow: makes the anchor's stochastic trajectories likely for the concept's prompt.

Kusumba et al., EraseFlow: Learning Concept Erasure Policies via GFlowNet-Driven Alignment, NeurIPS
2025, arXiv 2511.00804. Official code Abhiramkns/EraseFlow, read file by file: `train.py` @ 31c98ec
and `utils/train_step.py` @ 127bcb1 for SD 1.4, `trainsd3.py` @ 8d9a66a, `train_flux.py` @ 3b9df74.
Sampling steps ``x_j -> x_{j+1}`` are drawn for the anchor ``a``, and must be in trajectory balance
for the concept ``c``, with a constant reward ``R``:

    ``L = ( sum_{j in J} [ log p(x_{j+1} | x_j, c) - log q(x_j | x_{j+1}) ] + log Z - log R )^2``

``p`` is a step of ancestral sampling (DDIM at eta 1) with guidance, ``q`` the noising of the
process, both log-densities means over elements; ``J`` are the last 10 and 10 random others of 50
steps.

Verified in code for SD 1.4: all of the above; one backward through all of ``J``; prompts do not
alternate, and no term retains anything; ``log R = 2.5``; ``log Z`` is a parameter, but from -0.1953
and with the adapters' rate (3e-4, Adam, 20 steps) it moves by 0.006 at most; a trajectory of the
student at guidance 5 in each step, from ``switch_epoch`` on (for Van Gogh, 0) the same again;
adapters of rank 4 = alpha (``gaussian``) on ``to_q``, ``to_k``, ``to_v``, ``to_out.0`` of every
attention, AdamW 3e-4 (constant, decay 0.01), gradients clipped to 1, 20 steps of one trajectory.
The paper was not available.

Of a perfect denoiser ``log p - log q`` is ``log(s_j / s_{j+1})`` on average, 2.96 in all of ``J``
(computed here), and ``log R - log Z = 2.6953`` is close to it. The constant thus depends on the
schedule, its steps and ``J``. ``log_reward: null`` measures it: the original's own likelihood
for the anchor, of each trajectory, so that ``q`` cancels and

    ``L = ( sum_{j in J} [ log p(x_{j+1} | x_j, c) - log p*(x_{j+1} | x_j, a) ] )^2``

Where ours differs: ``log Z`` is constant (a learned one would take the loss to 0 without an
erasure); trajectories are of the frozen original, whose anchor cannot drift; guidance uses the
original's unconditional prediction, which the bank has (SD 1.4: the student's, with gradient; SD 3:
without), so that the loss does not fall by a change of the unconditional prediction. By default
adapters are on all projections of cross-attention or joint attention; the recipe for SD 1.5 adds
self-attention, as there.

The scripts of flow models have other losses. ``p`` is flow-GRPO's step at noise level 0.7, ``J``
all 40 steps, ``log R = 1000``, adapters have rank 32 and alpha 64 on all eight projections of an
attention. FLUX has no ``q``: the loss is maximum likelihood with a factor near -2000 (and needs a
``switch_epoch`` that its config lacks). SD 3 centres ``q`` at ``x_{j+1} + v dt``, where going back
is ``- v dt``, and gives it a gradient. Ours is one formula for all families, ancestral sampling
(`diffusion.stochastic_steps`) with the process's own ``q``; at eta 0.5 its noise is near that of
level 0.7 (at ``0.7 / sqrt(2)`` equal, in the limit of small steps).

Cost of a sentence: ``J`` forwards and backwards; the bank's trajectories two forwards a step.
"""

from typing import Any

from torch import Tensor

from erasure_lightning.adapters.lora import LoraInit
from erasure_lightning.checks import require
from erasure_lightning.diffusion.stochastic_steps import ancestral_step, noising
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.adapter_methods import PartErasure
from erasure_lightning.training.latent_sources import LatentSource, NoisyBatch
from erasure_lightning.training.optimizers import OptimizerName
from erasure_lightning.training.stochastic_trajectories import (
    StochasticTrajectories,
    TransitionBatch,
)


class EraseFlow(PartErasure):
    """Trajectory balance: the anchor's trajectories become as likely as a reward for the concept.

    Args:
        log_reward: ``log R - log Z``; none for the original's own likelihood for the anchor.
        rank: Rank of each adapter, at least 1.
        lora_init: As in `PartErasure`.
        latents: `StochasticTrajectories`, whose guidance and eta the likelihoods have.
        lr: Highest learning rate.
        optimizer: As in every gradient method.
        kwargs: Arguments of `GradientErasure`, and of `PartErasure`: ``train``, by default
            attention in which pixels meet text, and ``lora_layers``.

    Raises:
        ErasureError: If the reward is not finite, or the latents are no stochastic trajectories.
    """

    takes_adversary = False

    default_steps = 20

    def __init__(
        self,
        *,
        log_reward: float | None = 2.6953,
        rank: int = 4,
        lora_init: LoraInit = "gaussian",
        latents: LatentSource | None = None,
        lr: float = 3e-4,
        optimizer: OptimizerName = "adamw",
        **kwargs: Any,
    ) -> None:
        adapters: dict[str, Any] = {"rank": rank, "lora_init": lora_init}
        super().__init__(latents=latents, lr=lr, optimizer=optimizer, **adapters, **kwargs)
        require("EraseFlow", log_reward=log_reward)
        if not isinstance(self.latents, StochasticTrajectories):
            raise ErasureError(
                "EraseFlow needs StochasticTrajectories as latents, whose steps have a likelihood;"
                f" found {type(self.latents).__name__}."
            )
        self.trajectories = self.latents
        self.log_reward = log_reward

    def default_latents(self) -> LatentSource:
        """The anchors' trajectories, a new one in each step."""
        return StochasticTrajectories(trajectories=1, refresh=1)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """Mean over trajectories of the squared imbalance, a scalar."""
        assert isinstance(batch, TransitionBatch)
        forward = self.log_density(batch)
        if self.log_reward is None:
            imbalance = self._by_trajectory(forward - batch.original_density, batch)
        else:
            process = self.backbone.process
            backward = noising(process, batch.after, batch.after_t, batch.t).log_density(batch.x)
            imbalance = self._by_trajectory(forward - backward, batch) - self.log_reward
        return imbalance.square().mean()

    def log_density(self, batch: TransitionBatch) -> Tensor:
        """``log p(x_{j+1} | x_j, c)`` of the edited model, mean over elements, ``(B,)``."""
        guidance = self.trajectories.guidance
        prompts = self.backbone.encode(batch.prompts)
        prediction = self.backbone.denoise(batch.x, batch.t, prompts, guidance)
        if guidance > 1 and not self.backbone.embeds_guidance:
            unconditional = batch.teacher.unconditional
            prediction = unconditional + guidance * (prediction - unconditional)
        step = ancestral_step(
            self.backbone.process,
            prediction,
            batch.x,
            batch.t,
            batch.after_t,
            self.trajectories.eta,
        )
        return step.log_density(batch.after)

    @staticmethod
    def _by_trajectory(each: Tensor, batch: TransitionBatch) -> Tensor:
        """Sums of the steps' values ``(B,)`` by trajectory, ``(B / steps,)``."""
        total: Tensor = each.view(-1, batch.steps).sum(dim=1)
        return total
