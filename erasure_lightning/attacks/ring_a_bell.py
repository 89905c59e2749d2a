"""Ring-A-Bell (Tsai et al. 2024, arXiv 2310.10012, ICLR): prompts by arithmetic of text states.

Black box: the denoiser is never evaluated. The concept vector is the mean difference of ``N`` pairs
of prompts with and without the concept. A search looks for words whose states are the prompt's
plus ``eta`` times the vector:

    ``c = 1/N sum_i E(P_i with) - E(P_i without)``,   ``min_P* |E(P*) - (E(P) + eta c)|^2``

Verified in code (chiayi-hsu/Ring-A-Bell@e4585ad, ``InversePrompt.ipynb``): all token states,
squared and summed; a genetic search with 200 prompts of 16 random words, 3,000 generations; the
better half survives, each survivor has with probability 0.5 two children, crossed at one point with
another survivor; then each prompt is changed in one random word with probability 0.25. ``eta`` 3
for nudity, 5 for violence. Vector and search there use the original's text encoder.

Different: pairs are the concept's templates with its words and with an empty place; the goal is
computed with the original's encoder and searched for with the edited model's, which is the same
unless it was trained; tokens are evaluated as they are tokenized again from their spelling, since a
prompt is text, and states only up to the longest prompt's end, without padding that the denoiser
masks (PixArt); the best prompt so far is never changed. Defaults are the official code's;
``configs/attacks/ring-a-bell.yaml`` has the emoji world's, whose search is short and succeeds for
some prompts only.

Cost: no evaluation of a denoiser, and at most ``2 population * generations`` encoded prompts.
"""

from dataclasses import replace

import torch
from torch import Tensor

from erasure_lightning.attacks.base import AttackResult, ConceptAttack, check_at_least
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import fill_template


class RingABell(ConceptAttack):
    """Searches for words whose text states are the prompt's plus the concept vector.

    Args:
        tokens: Words of the prompt, at least 1.
        population: Prompts in a generation, at least 2; the better half survives.
        generations: Number of generations, at least 0.
        strength: Factor ``eta`` of the concept vector; 3 is the paper's for nudity, 5 for violence.
        crossover: Share of the survivors that have children, 0..1.
        mutation: Share of prompts that are changed in one word, 0..1.
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        tokens: int = 16,
        population: int = 200,
        generations: int = 3000,
        strength: float = 3.0,
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
        check_at_least(self, tokens=1, population=2, generations=0)
        require("RingABell", at_least=0, at_most=1, crossover=crossover, mutation=mutation)

    @torch.no_grad()
    def find(self, target: AttackTarget, case: AttackCase) -> AttackResult:
        """Search, and generate with the words whose states are closest to the goal."""
        model = target.edited
        goal = self.goal(target, case)
        vocabulary = model.vocabulary_size
        prompts = torch.randint(vocabulary, (self.population, self.tokens))
        for generation in range(self.generations):
            embedded = model.embed([model.spell(prompt) for prompt in prompts])
            states = model.contextualize(model.shortened(embedded))
            distances = state_distance(model, states, goal)
            prompts = prompts[distances.argsort().cpu()[: self.population // 2]]
            if generation < self.generations - 1:
                prompts = self._mutate(self._cross(prompts), vocabulary)
        best = model.spell(prompts[0])
        return AttackResult(target.generate(model.encode([best]), case.seeds), prompt=best)

    def goal(self, target: AttackTarget, case: AttackCase) -> Conditioning:
        """The states to reach: tokens ``(1, L, D)``, and the family's pooled vector, if any."""
        templates = target.templates(case)
        present, absent = (
            target.original.encode([fill_template(template, words) for template in templates])
            for words in (case.concept.name, "")
        )
        plain = target.original.encode([case.prompt])

        def shifted(start: Tensor, present: Tensor, absent: Tensor) -> Tensor:
            return start + self.strength * (present - absent).mean(dim=0, keepdim=True)

        tokens = shifted(plain.tokens, present.tokens, absent.tokens)
        if plain.pooled is None or present.pooled is None or absent.pooled is None:
            return replace(plain, tokens=tokens)
        pooled = shifted(plain.pooled, present.pooled, absent.pooled)
        return replace(plain, tokens=tokens, pooled=pooled)

    def _cross(self, survivors: Tensor) -> Tensor:
        """The survivors ``(B, k)``, the best first, followed by the children of some."""
        parents = survivors[torch.rand(len(survivors)) < self.crossover]
        partners = survivors[torch.randint(len(survivors), (len(parents),))]
        first = torch.arange(self.tokens) < torch.randint(self.tokens + 1, (len(parents), 1))
        children = torch.where(first, parents, partners)
        other_children = torch.where(first, partners, parents)
        return torch.cat((survivors, children, other_children))

    def _mutate(self, prompts: Tensor, vocabulary: int) -> Tensor:
        """The prompts ``(B, k)``, some changed in one token; the first, the best, never is."""
        place = torch.arange(self.tokens) == torch.randint(self.tokens, (len(prompts), 1))
        changed = place & (torch.rand(len(prompts), 1) < self.mutation)
        changed[0] = False
        return torch.where(changed, torch.randint(vocabulary, prompts.shape), prompts)


def state_distance(backbone: Backbone, states: Conditioning, goal: Conditioning) -> Tensor:
    """Squared distances ``(B,)`` of prompts' states to those of one, up to the prompts' length.

    Where attention leaves padding out, they are those at positions that are read of both, scaled to
    the number of all, so that short prompts are no nearer.
    """
    length = states.tokens.shape[1]
    both = (_read(backbone, states) & _read(backbone, goal)[:, :length]).unsqueeze(2)
    squares = (states.tokens - goal.tokens[:, :length]).square() * both
    distances: Tensor = squares.sum(dim=(1, 2)) / both.float().mean(dim=(1, 2))
    if states.pooled is None or goal.pooled is None:
        return distances
    return distances + (states.pooled - goal.pooled).square().sum(dim=1)


def _read(backbone: Backbone, conditioning: Conditioning) -> Tensor:
    """Mask of the positions whose states the denoiser reads, ``(B, L)``."""
    sources = [source for source in backbone.text_inputs() if source.source == "tokens"]
    return torch.stack([source.read(conditioning) for source in sources]).any(dim=0)
