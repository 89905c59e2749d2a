"""Concept inversion (Pham et al. 2024, arXiv 2308.01508, ICLR): textual inversion of the concept.

White box; the weights of the edited model are frozen. The embedding ``v`` of a new word is learned
so that the edited model denoises images ``x_0`` of the concept in prompts ``y`` with that word,

    ``min_v E_(x_0, t, n) |eps_theta(a_t x_0 + s_t n, t, E(y(v))) - n|^2``

The word then generates the concept in any prompt. It passes through an edited text encoder.

Verified in code (NYU-DICE-Lab/circumventing-concept-erasure@bb7034b, ``esd/concept_inversion.py``):
one vector, random templates of textual inversion, AdamW with decay 0.01, rate 5e-3 times the batch
of 16 (constant), 5,000 steps; 25 images for a style.

Different: the vector starts at the mean of the concept's own token embeddings, where the official
code takes a word of its kind (``art``); a step uses all examples, in one random one of the
concept's templates. Defaults are the official code's, with the 4 images that it puts on the device
at once; ``configs/attacks/concept-inversion.yaml`` has the emoji world's.

Cost: ``steps * examples`` evaluations with gradient, and the sampling of the examples.
"""

import torch
from torch.optim import AdamW

from erasure_lightning.attacks.base import AttackResult, ConceptAttack, check_at_least, descend
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.training.prompt_words import encode_word, mean_embeddings


class ConceptInversion(ConceptAttack):
    """Learns the embedding of a new word for the concept in the edited model.

    Args:
        steps: Steps of AdamW, at least 0.
        lr: AdamW's learning rate, at least 0.
        weight_decay: AdamW's decay, at least 0.
        examples: Images of the concept that the original generates, at least 1; each step uses all
            of them.
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        steps: int = 5000,
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

    def find(self, target: AttackTarget, case: AttackCase) -> AttackResult:
        """Learn the embedding, and generate the case's prompt with it."""
        model = target.edited
        start = mean_embeddings(model, case.concept.name)
        word = [row.clone().requires_grad_(True) for row in start]
        optimizer = AdamW(word, lr=self.lr, weight_decay=self.weight_decay)
        clean = target.examples(case, self.examples)
        templates = target.templates(case)
        for _ in range(self.steps):
            template = templates[int(torch.randint(len(templates), ()))]
            times = model.process.draw_times(len(clean)).to(clean.device)
            conditioning = encode_word(model, [template], word)
            descend(optimizer, target.denoising_loss(conditioning, clean, times))
        images = target.generate(encode_word(model, [case.template], word), case.seeds)
        tensors = {f"embedding.{i}": row for i, row in enumerate(word)}
        return AttackResult(images, tensors=tensors)
