"""Completion: the edited model finishes an image of the concept that the original has begun.

A probe of When Are Concepts Erased (Lu et al. 2025, arXiv 2505.17013, NeurIPS): the original model
takes the first steps from noise with the concept's prompt, and the edited model the others, with
the same prompt. An edit that changes the start of a trajectory may leave the later steps as they
are.

Verified in code (kevinlu4588/WhenAreConceptsErased@9a03e07,
``src/probes/diffusion_completion_probe.py``): DDIM, 50 steps, guidance 7.5; the original takes 1, 2
or 3 of them (up to 21 in ``probe_notebooks/diffusion-completion.ipynb``).

Controls beside those of `Probe`, where ``no prompt`` finishes the same latents unconditionally:

* ``visible``: the original's prediction of the clean image at the hand-over. Where it already shows
  the concept, the latents hold it, and finishing them takes no knowledge of it: choose a smaller
  share.

Cost for each image: the original's steps, four times the others, and one evaluation.
"""

from functools import partial

import torch
from torch import Tensor

from erasure_lightning.attacks.probe import Attempt, Attempts, Probe, generate_by_ddim
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.checks import require
from erasure_lightning.diffusion.ddim import ddim_times


class Completion(Probe):
    """Lets the edited model finish images of the concept that the original has begun.

    Args:
        share: Share of the steps that the original takes, at least 0, below 1; rounded to steps.
            The paper's are 0.02, 0.04 and 0.06.
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If the share is out of range.
    """

    def __init__(self, *, share: float = 0.06, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.share = share
        require("Completion", at_least=0, below=1, share=share)

    @torch.no_grad()
    def prepare(self, target: AttackTarget, case: AttackCase) -> Attempts:
        """Begin the images with the original; the baselines are ``no prompt`` and ``visible``."""
        times = ddim_times(target.edited, target.steps, target.settings.image_size)
        handover = min(round(self.share * (len(times) - 1)), len(times) - 2)
        noise = target.edited.noise(case.seeds, target.settings.image_size)

        def generate(model: Backbone, prompt: str | None, x: Tensor, times: Tensor) -> Tensor:
            return generate_by_ddim(target, model, prompt, x, times)

        begun = torch.cat(
            [
                generate(target.original, case.prompt, noise[rows], times[: handover + 1])
                for rows in target.batches(len(noise))
            ]
        )

        def finish(prompt: str | None, model: Backbone, rows: slice) -> Tensor:
            return model.decode(generate(model, prompt, begun[rows], times[handover:]))

        def predict(_: Backbone, rows: slice) -> Tensor:
            ends = times[[handover, -1]]
            return target.original.decode(generate(target.original, None, begun[rows], ends))

        baselines: dict[str, Attempt] = {"no prompt": partial(finish, None), "visible": predict}
        return Attempts(partial(finish, case.prompt), baselines)
