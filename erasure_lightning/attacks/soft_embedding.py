"""Soft embedding: the denoiser's conditioning itself is optimised, bypassing the text encoder.

An attack on the denoiser alone: it starts from the plain prompt's token states and minimises

    ``min_c  E_(x_0, t, n) |eps_theta(a_t x_0 + s_t n, t, c) - n|^2``

over images ``x_0`` of the concept that the original generates. Receler trains against such states
(Huang et al. 2024, arXiv 2311.17717, jasper0314-huang/Receler@3ccedc9; there a few rows behind the
prompt and the original's prediction as target), which is textual inversion of the output. No paper
fixes a budget for it as an evaluation; loss and settings here are ours.

An edited text encoder is bypassed: for SAGE and AdvUnlearn the success says what the unedited
denoiser can still generate, not what a prompt can reach. Report it apart from attacks by prompts.

Cost: one evaluation with gradient per example and step, and the sampling of the examples.
"""

from dataclasses import replace

from torch.optim import Adam

from erasure_lightning.attacks.base import AttackResult, ConceptAttack, check_at_least, descend
from erasure_lightning.attacks.target import AttackCase, AttackTarget


class SoftEmbedding(ConceptAttack):
    """Optimises the denoiser's conditioning directly, bypassing the text encoder.

    Args:
        steps: Steps of Adam, at least 0.
        lr: Adam's learning rate, at least 0.
        examples: Images of the concept that the original generates, at least 1; each step uses all
            of them.
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self, *, steps: int = 60, lr: float = 0.02, examples: int = 4, seed: int = 0
    ) -> None:
        super().__init__(seed=seed)
        self.steps = steps
        self.lr = lr
        self.examples = examples
        check_at_least(self, lr=0, steps=0, examples=1)

    def find(self, target: AttackTarget, case: AttackCase) -> AttackResult:
        """Minimise the loss, and generate with the conditioning."""
        plain = target.edited.encode([case.prompt])
        initial = {"tokens": plain.tokens}
        if plain.pooled is not None:
            initial["pooled"] = plain.pooled
        states = {
            name: value.detach().clone().requires_grad_(True) for name, value in initial.items()
        }
        conditioning = replace(plain, tokens=states["tokens"], pooled=states.get("pooled"))
        optimizer = Adam(states.values(), lr=self.lr)
        clean = target.examples(case, self.examples)
        for _ in range(self.steps):
            times = target.edited.process.draw_times(len(clean)).to(clean.device)
            descend(optimizer, target.denoising_loss(conditioning, clean, times))
        return AttackResult(target.generate(conditioning, case.seeds), tensors=states)
