"""P4D (Chin et al. 2024, arXiv 2309.06135, ICML): a prompt with the original model's predictions.

White box. Words ``P*`` for which, at noised images ``x_t`` that the original generates for the
prompt ``P``,

    ``min_P* |eps_edited(x_t, t, P*) - eps_original(x_t, t, P)|^2``

AdamW updates embeddings; the gradient is taken at the nearest words of the vocabulary, by cosine
(PEZ).

Verified in code (joycenerd/P4D@2cf3cda, ``prompt_optimization/optimize_n.py``): P4D-N, 16 words
alone without the prompt, initialised as random words; 3,000 steps with one random image each; AdamW
0.1 with decay 0.1; every 50 steps the words are evaluated, and the best are returned. Not here:
P4D-K, which puts a free word behind every third word of the prompt.

Different: the vocabulary is its whole words (`PromptSlots`), so that the result is a prompt; words
are evaluated by our scorer on an image from noise of its own, not by similarity to the original's
image; a step uses several images, and the search stops at the first success. Defaults are the
official code's; ``configs/attacks/p4d.yaml`` has the emoji world's.

Cost: ``2 steps * examples`` evaluations, half of them with gradient, ``steps / every`` images, and
the sampling of the examples.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize
from torch.optim import AdamW

from erasure_lightning.attacks.base import AttackResult, ConceptAttack, check_at_least, descend
from erasure_lightning.attacks.prompt_slots import PromptSlots
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.diffusion.latent_dataset import add_noise


class P4D(ConceptAttack):
    """Optimises words for which the edited model predicts what the original does for the prompt.

    Args:
        tokens: Words of the prompt, at least 1.
        steps: Steps of AdamW, at least 0.
        every: Steps between two evaluations of the words, at least 1; they are evaluated after the
            last step too.
        examples: Images of the concept that the original generates, at least 1; each step uses all
            of them.
        lr: AdamW's learning rate, at least 0.
        weight_decay: AdamW's decay, at least 0.
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        tokens: int = 16,
        steps: int = 3000,
        every: int = 50,
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

    def find(self, target: AttackTarget, case: AttackCase) -> AttackResult:
        """Search, and generate with the first successful words, or those of the highest margin."""
        slots = PromptSlots(target.edited, "{}", self.tokens)
        clean = target.examples(case, self.examples)
        with torch.no_grad():
            plain = target.original.encode([case.prompt]).expand(len(clean))
        start = slots.sample(1)[0]
        embeddings = [table[start].clone().requires_grad_(True) for table in slots.tables]
        optimizer = AdamW(embeddings, lr=self.lr, weight_decay=self.weight_decay)
        evaluated = [(-math.inf, slots.spell(start))]
        for step in range(1, self.steps + 1):
            descend(optimizer, self._loss(target, slots, embeddings, clean, plain))
            if step % self.every == 0 or step == self.steps:
                words = slots.spell(nearest_words(embeddings, slots.tables))
                evaluated.append((target.prompt_margin(case, words), words))
            if evaluated[-1][0] > 0:
                break
        _, best = max(evaluated)
        return AttackResult(target.generate(target.edited.encode([best]), case.seeds), prompt=best)

    @staticmethod
    def _loss(
        target: AttackTarget,
        slots: PromptSlots,
        embeddings: list[Tensor],
        clean: Tensor,
        plain: Conditioning,
    ) -> Tensor:
        """Mean squared error between the two models' predictions, a scalar.

        Args:
            target: The two models.
            slots: The prompt.
            embeddings: Trained rows of each text encoder, ``(k, E)``; projected to the nearest
                words, with the gradient straight through.
            clean: Latents of the examples, ``(B, C, h, w)``.
            plain: The original's conditioning of the plain prompt, ``(B, L, D)``.
        """
        choice = nearest_words(embeddings, slots.tables)
        times = target.edited.process.draw_times(len(clean)).to(clean.device)
        x, t, _ = add_noise(target.edited.process, clean, times)
        pairs = zip(embeddings, slots.tables, strict=True)
        projected = [row + (table[choice] - row).detach() for row, table in pairs]
        prompts = slots.fill([row.unsqueeze(0) for row in projected], choice[None])
        conditioning = target.edited.contextualize(prompts)
        with torch.no_grad():
            original_prediction = target.original.denoise(x, t, plain)
        prediction = target.edited.denoise(x, t, conditioning.expand(len(x)))
        return mse_loss(prediction, original_prediction)


@torch.no_grad()
def nearest_words(embeddings: Sequence[Tensor], tables: Sequence[Tensor]) -> Tensor:
    """The words nearest to embeddings by cosine, summed over text encoders, ``(k,)``.

    Args:
        embeddings: Rows of each text encoder, ``(k, E)``.
        tables: Embeddings of all words for each text encoder, ``(W, E)``.
    """
    cosines = [
        normalize(rows, dim=1) @ normalize(table, dim=1).mT
        for rows, table in zip(embeddings, tables, strict=True)
    ]
    return torch.stack(cosines).sum(dim=0).argmax(dim=1)
