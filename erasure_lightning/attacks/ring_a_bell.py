"""Ring-A-Bell (Tsai et al. 2024, arXiv 2310.10012, ICLR): words that mean the prompt and more of
the concept.

Black box to the denoiser, which is never asked. From ``N`` pairs of sentences with and without the
concept comes its vector, and words are sought whose states are the prompt's with ``eta`` times the
vector added:

    ``c = 1/N sum_i E(P_i with) - E(P_i without)``,   ``min_P* |E(P*) - (E(P) + eta c)|^2``

Verified in code (chiayi-hsu/Ring-A-Bell@e4585ad, ``InversePrompt.ipynb``): all token states,
squared and summed; a genetic search with 200 prompts of 16 words by lot, 3,000 generations; the
better half lives, each has with probability 0.5 two children, crossed at one point with another
that lives; then each is changed in one word by lot with probability 0.25. ``eta`` 3 for nudity, 5
for violence. Vector and search there are of the original's text encoder.

Different: pairs are the concept's templates with its words and with nothing in their place; what is
    to be meant is what
the original's encoder says, and it is sought in the edited model's encoder, which is the same
unless it was trained; tokens are judged as they read when they are spelt, since a prompt is words,
and states as far as the longest prompt reaches; the best prompt so far is never changed. Defaults
are for the emoji world, where the search is short and finds its way for some sentences only.

Cost: no evaluation of a denoiser, and at most ``2 population * generations`` encoded prompts.
"""

from dataclasses import replace

import torch
from torch import Tensor

from erasure_lightning.attacks.base import ConceptAttack, Found, check_at_least
from erasure_lightning.attacks.target import Case, Target
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.concepts.concept import fill_template


class RingABell(ConceptAttack):
    """Looks, in the text encoder alone, for words that mean the prompt and more of the concept.

    Args:
        tokens: Words of the prompt, at least 1; 16 in the paper.
        population: Prompts in a generation, an even number of at least 2; 200 in the paper.
        generations: How many, at least 0; 3,000 in the paper.
        strength: How much of the concept's vector is added, ``eta``; 3 in the paper for nudity.
        crossover: Share of the living that have children, 0..1.
        mutation: Share of prompts that are changed in one word, 0..1.
        seed: Of everything the attack draws.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        tokens: int = 2,
        population: int = 200,
        generations: int = 60,
        strength: float = 2.0,
        crossover: float = 0.5,
        mutation: float = 0.25,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.tokens = tokens
        self.population = population
        self.generations = generations
        self.strength = strength
        self.crossover = crossover
        self.mutation = mutation
        check_at_least(self, tokens=1, population=2, generations=0, crossover=0, mutation=0)

    @torch.no_grad()
    def find(self, target: Target, case: Case) -> Found:
        """Search, and draw with the words that come closest."""
        model, goal = target.edited, self.goal(target, case)
        vocabulary = model.vocabulary_size
        prompts = torch.randint(vocabulary, (self.population, self.tokens))
        for generation in range(self.generations):
            spelled = model.embed([model.spell(prompt) for prompt in prompts])
            read = model.contextualize(model.shortened(spelled))
            misses = distance(read, goal)
            prompts = prompts[misses.argsort().cpu()[: self.population // 2]]
            if generation < self.generations - 1:
                prompts = self._mutated(self._crossed(prompts), vocabulary)
        best = model.spell(prompts[0])
        return Found(target.draw(model.encode([best]), case.seeds), prompt=best)

    def goal(self, target: Target, case: Case) -> Conditioning:
        """What is to be meant, tokens ``(1, L, D)``, and the pooled vector where the family has
        one.
        """
        sentences = target.sentences(case)
        present, absent = (
            target.original.encode([fill_template(sentence, words) for sentence in sentences])
            for words in (case.concept.name, "")
        )
        plain = target.original.encode([case.sentence])

        def moved(start: Tensor, ends: Tensor, starts: Tensor) -> Tensor:
            return start + self.strength * (ends - starts).mean(dim=0, keepdim=True)

        tokens = moved(plain.tokens, present.tokens, absent.tokens)
        if plain.pooled is None or present.pooled is None or absent.pooled is None:
            return replace(plain, tokens=tokens)
        return replace(
            plain, tokens=tokens, pooled=moved(plain.pooled, present.pooled, absent.pooled)
        )

    def _crossed(self, parents: Tensor) -> Tensor:
        """The parents ``(B, k)``, the best first, and the children of some."""
        having = parents[torch.rand(len(parents)) < self.crossover]
        others = parents[torch.randint(len(parents), (len(having),))]
        first = torch.arange(self.tokens) < torch.randint(self.tokens + 1, (len(having), 1))
        return torch.cat(
            (parents, torch.where(first, having, others), torch.where(first, others, having))
        )

    def _mutated(self, prompts: Tensor, vocabulary: int) -> Tensor:
        """The prompts ``(B, k)``, some with another token in one place; the first, which is the
        best, stays.
        """
        place = torch.arange(self.tokens) == torch.randint(self.tokens, (len(prompts), 1))
        changed = place & (torch.rand(len(prompts), 1) < self.mutation)
        changed[0] = False
        return torch.where(changed, torch.randint(vocabulary, prompts.shape), prompts)


def distance(read: Conditioning, goal: Conditioning) -> Tensor:
    """Summed squares between prompts' states, as far as they were read, and those of one prompt,
    ``(B,)``.
    """
    tokens: Tensor = (read.tokens - goal.tokens[:, : read.tokens.shape[1]]).square().sum(dim=(1, 2))
    if read.pooled is None or goal.pooled is None:
        return tokens
    return tokens + (read.pooled - goal.pooled).square().sum(dim=1)
