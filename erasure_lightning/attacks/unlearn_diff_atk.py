"""UnlearnDiffAtk (Zhang et al. 2024, arXiv 2310.11868, ECCV): a prefix optimised by gradients.

White box. With an image ``x_0`` of the concept and words ``delta`` in front of the prompt ``y``:

    ``min_delta |eps_theta(a_t x_0 + s_t n, t, E([delta, y])) - n|^2``

The model is its own classifier: no second one is needed. Words are relaxed to the simplex over the
vocabulary, sampled from it in the forward pass, with ``hardtanh`` of the gradient straight through
in the backward pass, and projected back onto it after each step of Adam.

Verified in code (OPTML-Group/Diffusion-MU-Attack@5a3e5d3, ``src/attackers/text_grad_.py``): uniform
start, one word sampled a step and slot, Adam 0.01 with decay 0.1, 40 steps at each of 50 times from
clean to noisy, after each time an image is generated and scored, stop at the first that shows the
concept; 5 words for nudity, 3 for things. A prompt that needs no prefix counts as a success.

Different: the vocabulary is its whole words (`PromptSlots`), so that the result is a prompt; the
image that decides comes from noise of its own, and the reported images from other noise; the
projection is exact by sorting; of prompts that never succeed the one of the highest margin is
reported. Defaults are the official code's for nudity; ``configs/attacks/unlearn-diff-atk.yaml``
has the emoji world's.

Cost: ``times * steps`` evaluations with gradient, ``times + 1`` images, and the sampling of one
example.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import hardtanh, one_hot
from torch.optim import Adam

from erasure_lightning.attacks.base import AttackResult, ConceptAttack, check_at_least, descend
from erasure_lightning.attacks.prompt_slots import PromptSlots
from erasure_lightning.attacks.target import AttackCase, AttackTarget


class UnlearnDiffAtk(ConceptAttack):
    """Optimises words in front of the prompt so that the edited model denoises the concept.

    Args:
        tokens: Words in front of the prompt, at least 1; 5 is the paper's for nudity, 3 for things.
        times: Number of diffusion times, attacked one after the other, at least 0.
        steps: Steps of Adam at each, at least 0.
        lr: Adam's learning rate, at least 0.
        weight_decay: Adam's decay, at least 0.
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        tokens: int = 5,
        times: int = 50,
        steps: int = 40,
        lr: float = 0.01,
        weight_decay: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.tokens = tokens
        self.times = times
        self.steps = steps
        self.lr = lr
        self.weight_decay = weight_decay
        check_at_least(self, lr=0, tokens=1, times=0, steps=0, weight_decay=0)

    def find(self, target: AttackTarget, case: AttackCase) -> AttackResult:
        """Search, and generate with the first successful prompt, or that of the highest margin."""
        best = self._search_prompt(target, case) if self.times else case.prompt
        return AttackResult(target.generate(target.edited.encode([best]), case.seeds), prompt=best)

    def _search_prompt(self, target: AttackTarget, case: AttackCase) -> str:
        slots = PromptSlots(target.edited, f"{{}} {case.prompt}", self.tokens)
        clean = target.examples(case, 1)
        count = len(slots.words)
        weights = torch.full((self.tokens, count), 1 / count, device=clean.device)
        weights.requires_grad_(True)
        optimizer = Adam([weights], lr=self.lr, weight_decay=self.weight_decay)
        evaluated = [(target.prompt_margin(case, case.prompt), case.prompt)]
        for t in target.edited.process.at(interval_midpoints(self.times)).to(clean.device):
            if evaluated[-1][0] > 0:
                break
            self._optimize(target, slots, optimizer, clean, t.unsqueeze(0))
            words = slots.spell(weights.argmax(dim=1))
            evaluated.append((target.prompt_margin(case, words), words))
        return max(evaluated)[1]

    def _optimize(
        self, target: AttackTarget, slots: PromptSlots, optimizer: Adam, clean: Tensor, t: Tensor
    ) -> None:
        """Take the optimizer's steps at one diffusion time."""
        (weights,) = optimizer.param_groups[0]["params"]
        for _ in range(self.steps):
            sampled = SampledWord.apply(weights)  # type: ignore[no-untyped-call]
            conditioning = target.edited.contextualize(slots.fill_mixture(sampled))
            descend(optimizer, target.denoising_loss(conditioning, clean, t))
            with torch.no_grad():
                weights.copy_(project_to_simplex(weights))


class SampledWord(torch.autograd.Function):
    """Samples a word for each slot by its weights ``(k, W)``, as one-hot rows.

    Gradients pass straight through, clamped to -1..1.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor) -> Tensor:
        """Sample from torch's global generator."""
        words = torch.multinomial(weights.cpu(), 1).squeeze(1).to(weights.device)
        return one_hot(words, weights.shape[1]).to(weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Pass the clamped gradient through."""
        return hardtanh(gradients[0])


def project_to_simplex(rows: Tensor) -> Tensor:
    """Projects rows ``(k, W)`` onto the probability simplex (Held, Wolfe and Crowder 1974)."""
    sorted_rows = rows.sort(dim=1, descending=True).values
    counts = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    excess = (sorted_rows.cumsum(dim=1) - 1) / counts
    last = (sorted_rows > excess).sum(dim=1, keepdim=True) - 1
    return (rows - excess.gather(1, last)).clamp(min=0)


def interval_midpoints(count: int) -> Tensor:
    """Midpoints of ``count`` equal parts of 0..1, rising, ``(count,)``."""
    return (2 * torch.arange(count) + 1) / (2 * count)
