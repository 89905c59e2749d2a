"""UnlearnDiffAtk (Zhang et al. 2024, arXiv 2310.11868, ECCV): a few words in front of the prompt,
by gradients.

White box. With a picture ``x_0`` of the concept and words ``delta`` in front of the prompt ``y``:

    ``min_delta |eps_theta(a_t x_0 + s_t n, t, E([delta, y])) - n|^2``

The model is its own classifier: no second one is needed. Words are relaxed to the simplex over the
vocabulary, drawn from it in the forward pass, with ``hardtanh`` of the slope straight through in
the backward pass, and projected back onto it after each step of Adam.

Verified in code (OPTML-Group/Diffusion-MU-Attack@5a3e5d3, ``src/attackers/text_grad_.py``): uniform
start, one word drawn a step and place, Adam 0.01 with decay 0.1, 40 steps at each of 50 times from
clean to noisy, after each time a picture is drawn and judged, stop at the first that shows the
concept; 5 words for nudity, 3 for things. A prompt that needs no words counts as found.

Different: the vocabulary is its whole words (`Slots`), so that what was found is a prompt; the
    picture that decides is
drawn from noise of its own, and what is reported from other noise; the projection is exact by
sorting; of prompts that never succeed the one closest to it is reported. Defaults are for the emoji
world.

Cost: ``times * steps`` evaluations with gradient, ``times + 1`` pictures, and the sampling of one
    example.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import hardtanh, one_hot
from torch.optim import Adam

from erasure_lightning.attacks.base import ConceptAttack, Found, check_at_least, descend
from erasure_lightning.attacks.prompt_slots import Slots
from erasure_lightning.attacks.target import Case, Target


class UnlearnDiffAtk(ConceptAttack):
    """Puts words in front of the prompt by which the edited model denoises the concept best.

    Args:
        tokens: Words in front of the prompt, at least 1; 5 or 3 in the paper.
        times: Times at which the loss is taken one after the other, at least 0; 50 in the paper.
        steps: Steps of Adam at each, at least 0; 40 in the paper.
        lr: Adam's learning rate, at least 0.
        weight_decay: Adam's decay, at least 0.
        seed: Of everything the attack draws.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        tokens: int = 3,
        times: int = 8,
        steps: int = 8,
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

    def find(self, target: Target, case: Case) -> Found:
        """Search, and draw with the first prompt that succeeded, else the one that came closest."""
        best = case.sentence
        if self.times:
            slots, clean = (
                Slots(target.edited, f"{{}} {case.sentence}", self.tokens),
                target.examples(case, 1),
            )
            weights = torch.full(
                (self.tokens, len(slots.words)), 1 / len(slots.words), device=clean.device
            )
            optimizer = Adam(
                [weights.requires_grad_(True)], lr=self.lr, weight_decay=self.weight_decay
            )
            tried = [(target.promise(case, best), best)]
            for t in target.edited.process.at(spread_shares(self.times)).to(clean.device):
                if tried[-1][0] > 0:
                    break
                self._descend(target, slots, optimizer, clean, t.unsqueeze(0))
                words = slots.spelt(weights.argmax(dim=1))
                tried.append((target.promise(case, words), words))
            best = max(tried)[1]
        return Found(target.draw(target.edited.encode([best]), case.seeds), prompt=best)

    def _descend(
        self, target: Target, slots: Slots, optimizer: Adam, clean: Tensor, t: Tensor
    ) -> None:
        (weights,) = optimizer.param_groups[0]["params"]
        for _ in range(self.steps):
            asked = target.edited.contextualize(slots.mixed(OneWord.apply(weights)))  # type: ignore[no-untyped-call]
            descend(optimizer, target.denoising_loss(asked, clean, t))
            with torch.no_grad():
                weights.copy_(onto_simplex(weights))


class OneWord(torch.autograd.Function):
    """A word for each place by its weights ``(k, W)``, as one-hot rows; slopes go straight through,
    cut to -1..1.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor) -> Tensor:
        """Draw, from torch's global generator."""
        drawn = torch.multinomial(weights.cpu(), 1).squeeze(1).to(weights.device)
        return one_hot(drawn, weights.shape[1]).to(weights)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        """Straight through."""
        return hardtanh(slopes[0])


def onto_simplex(rows: Tensor) -> Tensor:
    """The nearest rows ``(k, W)`` that are at least 0 and sum to 1 (Held, Wolfe and Crowder 1974)."""
    sorted_rows = rows.sort(dim=1, descending=True).values
    excess = (sorted_rows.cumsum(dim=1) - 1) / torch.arange(
        1, rows.shape[1] + 1, device=rows.device
    )
    last = (sorted_rows > excess).sum(dim=1, keepdim=True) - 1
    return (rows - excess.gather(1, last)).clamp(min=0)


def spread_shares(count: int) -> Tensor:
    """Shares of the range of times in the middle of ``count`` equal parts, from clean to noisy,
    ``(count,)``.
    """
    return (2 * torch.arange(count) + 1) / (2 * count)
