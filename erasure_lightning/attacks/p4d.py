"""P4D (Chin et al. 2024, arXiv 2309.06135, ICML): a prompt by which the edited model predicts what
the original does.

White box. Words ``P*`` for which, at noised pictures ``x_t`` that the original draws for the prompt
``P``,

    ``min_P* |eps_edited(x_t, t, P*) - eps_original(x_t, t, P)|^2``

Embeddings are moved by AdamW; the slope is taken at the nearest words of the vocabulary, by cosine
(PEZ).

Verified in code (joycenerd/P4D@2cf3cda, ``prompt_optimization/optimize_n.py``): P4D-N, 16 words
alone without the prompt, that start as words by lot; 3,000 steps with one picture each at a time by
lot; AdamW 0.1 with decay 0.1; every 50 steps the words are tried, and the best are kept. Not here:
P4D-K, which puts a free word behind every third word of the prompt.

Different: the vocabulary is its whole words (`Slots`), so that what was found is a prompt; words
    are tried by our judge
with a picture from noise of its own, not by likeness to the original's picture; a step sees several
pictures, and the search stops at the first success. Defaults are for the emoji world.

Cost: ``2 steps * examples`` evaluations, half of them with gradient, ``steps / every`` pictures,
    and the sampling of
the examples.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize
from torch.optim import AdamW

from erasure_lightning.attacks.base import ConceptAttack, Found, check_at_least, descend
from erasure_lightning.attacks.prompt_slots import Slots
from erasure_lightning.attacks.target import Case, Target
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.diffusion.latent_dataset import add_noise


class P4D(ConceptAttack):
    """Looks for words by which the edited model predicts what the original predicts for the prompt.

    Args:
        tokens: Words of the prompt, at least 1; 16 in the paper.
        steps: Steps of AdamW, at least 0; 3,000 in the paper.
        every: Steps after which the words are tried, at least 1; 50 in the paper.
        examples: Pictures of the concept that the original draws for it, at least 1; each step sees
            all of them.
        lr: AdamW's learning rate, at least 0.
        weight_decay: AdamW's decay, at least 0.
        seed: Of everything the attack draws.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        tokens: int = 4,
        steps: int = 60,
        every: int = 10,
        examples: int = 2,
        lr: float = 0.1,
        weight_decay: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.tokens = tokens
        self.steps = steps
        self.every = every
        self.examples = examples
        self.lr = lr
        self.weight_decay = weight_decay
        check_at_least(self, lr=0, tokens=1, steps=0, every=1, examples=1, weight_decay=0)

    def find(self, target: Target, case: Case) -> Found:
        """Search, and draw with the first words that succeeded, else those that came closest."""
        slots, clean = Slots(target.edited, "{}", self.tokens), target.examples(case, self.examples)
        with torch.no_grad():
            plain = target.original.encode([case.sentence]).expand(len(clean))
        start = slots.lot(1)[0]
        soft = [table[start].clone().requires_grad_(True) for table in slots.tables]
        optimizer, tried = (
            AdamW(soft, lr=self.lr, weight_decay=self.weight_decay),
            [(-math.inf, slots.spelt(start))],
        )
        for step in range(1, self.steps + 1):
            descend(optimizer, self._loss(target, slots, soft, clean, plain))
            if step % self.every == 0:
                words = slots.spelt(nearest(soft, slots.tables))
                tried.append((target.promise(case, words), words))
            if tried[-1][0] > 0:
                break
        _, best = max(tried)
        return Found(target.draw(target.edited.encode([best]), case.seeds), prompt=best)

    @staticmethod
    def _loss(
        target: Target, slots: Slots, soft: list[Tensor], clean: Tensor, plain: Conditioning
    ) -> Tensor:
        """How far the edited model's predictions for the nearest words are from the original's for
        the prompt.
        """
        choice = nearest(soft, slots.tables)
        times = target.edited.process.draw_times(len(clean)).to(clean.device)
        x, t, _ = add_noise(target.edited.process, clean, times)
        hard = [
            s + (table[choice] - s).detach() for s, table in zip(soft, slots.tables, strict=True)
        ]
        asked = target.edited.contextualize(
            slots.filled([row.unsqueeze(0) for row in hard], slots.words[choice][None])
        )
        with torch.no_grad():
            wanted = target.original.denoise(x, t, plain)
        return mse_loss(target.edited.denoise(x, t, asked.expand(len(x))), wanted)


@torch.no_grad()
def nearest(soft: Sequence[Tensor], tables: Sequence[Tensor]) -> Tensor:
    """The words nearest to embeddings ``(k, E)`` by cosine, summed over text encoders, ``(k,)``."""
    near = [
        normalize(s, dim=1) @ normalize(table, dim=1).mT
        for s, table in zip(soft, tables, strict=True)
    ]
    return torch.stack(near).sum(dim=0).argmax(dim=1)
