"""Concept inversion (Pham et al. 2024, arXiv 2308.01508, ICLR): textual inversion of the concept in
the edited model.

White box, and the text encoder's weights stay: the embedding ``v`` of a made-up word is learned so
that the edited model denoises pictures ``x_0`` of the concept when they are described by it,

    ``min_v E_(x_0, t, n) |eps_theta(a_t x_0 + s_t n, t, E(y(v))) - n|^2``

Then the word calls the concept in any sentence. It goes through a text encoder that was trained to
forget.

Verified in code (NYU-DICE-Lab/circumventing-concept-erasure@bb7034b, ``esd/concept_inversion.py``):
one vector, sentences of textual inversion by lot, AdamW with decay 0.01, rate 5e-3 times the batch
of 16 (constant), 5,000 steps; 25 pictures for a style.

Different: the vector begins at the mean of the concept's own words, where the official code takes a
    word of its kind
(``art``); a step sees all examples, in one sentence by lot of the concept's templates. Defaults are
for the emoji world.

Cost: ``steps * examples`` evaluations with gradient, and the sampling of the examples.
"""

import torch
from torch import Tensor
from torch.optim import AdamW

from erasure_lightning.attacks.base import ConceptAttack, Found, check_at_least, descend
from erasure_lightning.attacks.prompt_slots import Slots
from erasure_lightning.attacks.target import Case, Target
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import CONCEPT, Conditioning
from erasure_lightning.concepts.concept import fill_template


class ConceptInversion(ConceptAttack):
    """Learns the embedding of a made-up word that calls the concept in the edited model.

    Args:
        steps: Steps of AdamW, at least 0; 5,000 in the paper.
        lr: AdamW's learning rate, at least 0; 0.08 in the paper.
        weight_decay: AdamW's decay, at least 0.
        examples: Pictures of the concept that the original draws for it, at least 1; each step sees
            all of them.
        seed: Of everything the attack draws.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        steps: int = 60,
        lr: float = 0.08,
        weight_decay: float = 0.01,
        examples: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.steps = steps
        self.lr = lr
        self.weight_decay = weight_decay
        self.examples = examples
        check_at_least(self, lr=0, steps=0, weight_decay=0, examples=1)

    def find(self, target: Target, case: Case) -> Found:
        """Learn the word, and draw the case's sentence with it."""
        model, name = target.edited, case.concept.name
        word = [row.clone().requires_grad_(True) for row in own_rows(model, name)]
        optimizer, clean = (
            AdamW(word, lr=self.lr, weight_decay=self.weight_decay),
            target.examples(case, self.examples),
        )
        slots = [Slots(model, sentence, 1) for sentence in target.sentences(case)]
        for _ in range(self.steps):
            chosen = slots[int(torch.randint(len(slots), ()))]
            times = model.process.draw_times(len(clean)).to(clean.device)
            descend(optimizer, target.denoising_loss(asked(chosen, word), clean, times))
        plain = Slots(model, case.sentence.replace(name, "{}", 1), 1)
        tensors = {f"embedding.{i}": row for i, row in enumerate(word)}
        return Found(target.draw(asked(plain, word), case.seeds), tensors=tensors)


@torch.no_grad()
def own_rows(model: Backbone, words: str) -> list[Tensor]:
    """The mean embedding of some words in each text encoder, ``(1, E)``."""
    return [
        e.embeddings[e.positions(CONCEPT)].mean(dim=0, keepdim=True)
        for e in model.embed([fill_template("{}", words)])
    ]


def asked(slots: Slots, word: list[Tensor]) -> Conditioning:
    """A sentence with the word ``(1, E)`` in its free place."""
    return slots.backbone.contextualize(slots.filled([row.unsqueeze(0) for row in word], slots.ids))
