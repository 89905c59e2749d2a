"""Soft embedding: what the denoiser reads of a prompt is optimised itself, past any text encoder.

An attack on the denoiser alone: it starts from the plain sentence's token states and descends

    ``min_c  E_(x_0, t, n) |eps_theta(a_t x_0 + s_t n, t, c) - n|^2``

over pictures ``x_0`` that the original draws of the concept. Receler trains against such states
(Huang et al. 2024, arXiv 2311.17717, jasper0314-huang/Receler@3ccedc9; there a few rows behind the
prompt and the original's prediction as target), which is textual inversion of the output. No paper
fixes a budget for it as an evaluation; loss and settings here are ours.

A text encoder that was trained to forget is bypassed: against SAGE and AdvUnlearn this says what
the untouched denoiser still can, not what a prompt can get, and is to be reported apart from
attacks that go through words.

Cost: one evaluation with gradient per example and step, and the sampling of the examples.
"""

from dataclasses import replace

from torch.optim import Adam

from erasure_lightning.attacks.base import ConceptAttack, Found, check_at_least, descend
from erasure_lightning.attacks.target import Case, Target


class SoftEmbedding(ConceptAttack):
    """Optimises what the denoiser reads, past any text encoder.

    Args:
        steps: Steps of Adam, at least 0.
        lr: Its learning rate, at least 0.
        examples: Pictures of the concept that the original draws for it, at least 1; each step sees
            all of them.
        seed: Of everything the attack draws.

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

    def find(self, target: Target, case: Case) -> Found:
        """Descend, and draw with what was found."""
        plain = target.edited.encode([case.sentence])
        named = {"tokens": plain.tokens} | (
            {} if plain.pooled is None else {"pooled": plain.pooled}
        )
        states = {name: value.clone().requires_grad_(True) for name, value in named.items()}
        soft = replace(plain, tokens=states["tokens"], pooled=states.get("pooled"))
        optimizer = Adam(states.values(), lr=self.lr)
        clean = target.examples(case, self.examples)
        for _ in range(self.steps):
            times = target.edited.process.draw_times(len(clean)).to(clean.device)
            descend(optimizer, target.denoising_loss(soft, clean, times))
        return Found(target.draw(soft, case.seeds), tensors=states)
