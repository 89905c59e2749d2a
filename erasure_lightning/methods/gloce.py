"""GLoCE: gated low-rank maps after cross-attention, from statistics of its outputs.

Lee et al., Localized Concept Erasure for Text-to-Image Diffusion Models Using Training-Free Gated
Low-Rank Adaptation (CVPR 2025), arXiv 2503.12356. Official code Hyun1A/GLoCE @ 95e48ef,
`update/update_gloce.py`, verified in code. Of each cross-attention's outputs ``h`` in rollouts,
over all pixels, steps and images, with mean ``m`` and covariance ``C`` for the concept, ``m_a`` and
``C_a`` for its anchor:

    ``h' = (1 - s) h + s (m_a + V_a V_a^T (I - V V^T) (h - m))``
    ``s  = sigmoid(k (|V_g^T (h - m_a) / |h - m_a||^2 - c))``

``V`` and ``V_a`` are the leading eigenvectors of ``C`` and ``C_a``: what varies in the concept is
removed, what varies in the anchor remains, around the anchor's mean. ``V_g`` is leading in
``C + (m - m_a)(m - m_a)^T``, which tells the concept's outputs from the anchor's mean. The gate
opens above ``c = mean + threshold * std`` of the largest score in an image, over steps and images
of the concept's nearest neighbours, with ``k = logit(0.99) / (0.001 threshold)``: a pixel that
shows the concept is replaced whatever the prompt, one that shows a neighbour is not. Statistics are
those of the prediction with the prompt, at four scales (outputs, and means of 2, 4 and 8 pixels a
side); scores are of outputs alone.

Its numbers for artists on SD 1.4 are the defaults: ranks 1, 3 neighbours by the cosine of their
first 8 tokens' states, 3 images of 50 steps at guidance 7.5, threshold 2.5. For celebrities the
ranks are 16 of ``V`` and 2 of ``V_a``, with statistics of steps 12 to 21 and gates that are closed
in the first 10 (left out); for explicit content too, with threshold 1.5, 8 images, 2 neighbours.

Where ours differs: the gate's reference ``m_a`` is always the anchor's. In the official code it is
for artists ("real photograph") and explicit content ("a person in modest clothing"), while
celebrities are mapped to the three farthest names, with "a celebrity" as reference. Statistics are
float64, and of all steps (there the first is left out); the sampler is the pipeline's own, and not
LMS; scales that a layer is too small for are left out. Neighbours are searched among the
vocabulary's labels (for a style among other styles), or among the prompts that retention callbacks
retain, and not in a file of names. Official code has a file for each concept, and merged files act
as the stack here: a pixel has the gate that is most open.

Cost: ``2 + neighbours`` prompts a concept, ``2 images rollout_steps`` evaluations each; no
gradient.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import isqrt, log
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from erasure_lightning.adapters.base import ADAPTER_CHILD, AdapterPlan
from erasure_lightning.adapters.gated_low_rank import gate_scores
from erasure_lightning.backbones.conditioning import START
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import Concept, ConceptKind
from erasure_lightning.concepts.prompt_lists import read_prompt_list, without_concepts
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.diffusion.sampling import rollout
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.adapter_methods import AdapterEdit
from erasure_lightning.training.closed_form import ClosedFormErasure

#: Sentence of the images of each kind of concept.
_TEMPLATES: dict[ConceptKind, str] = {
    "thing": "a photo of a {}",
    "style": "an image in the style of {}",
    "person": "a face of {}",
    "action": "a photo of a person {}",
}

#: Number of scales of the statistics, each of half the side of the one before.
_SCALES = 4

#: Tokens after the start whose states decide which words are near.
_TOKENS = 8

#: Openness of a gate at the width of its slope, a thousandth of ``threshold`` above its centre.
_OPEN = 0.99

#: Prompts encoded at once.
_CHUNK = 64


@dataclass
class Moments:
    """Sums over rows ``h`` ``(D,)``, in float64.

    Args:
        count: Number of rows.
        total: ``sum h``, ``(D,)``.
        gram: ``sum h h^T``, ``(D, D)``.
    """

    count: int
    total: Tensor
    gram: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "Moments":
        """Sums of no rows, for rows of width ``width``."""
        total = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, total, torch.zeros(width, width, dtype=torch.float64, device=device))

    def add(self, rows: Tensor) -> None:
        """Adds rows ``(N, D)``."""
        h = rows.double()
        self.count += len(h)
        self.total += h.sum(dim=0)
        self.gram += h.mT @ h

    @property
    def mean(self) -> Tensor:
        """``(D,)``."""
        return self.total / self.count

    def around(self, point: Tensor) -> Tensor:
        """``E (h - p)(h - p)^T`` ``(D, D)``; around the mean it is the covariance."""
        cross = torch.outer(self.mean, point)
        return self.gram / self.count - cross - cross.mT + torch.outer(point, point)


class GLoCE(AdapterEdit, ClosedFormErasure):
    """Gated low-rank adaptation: maps pixels that show the concept to its anchor, without training.

    Args:
        rank: Rank of ``V``, what is removed of the concept; from 1 to the width of a layer.
        anchor_rank: Rank of ``V_a``, what remains of the anchor; in the same range.
        gate_rank: Rank of ``V_g``, in the same range.
        neighbours: Number of near words for which the gate stays closed, at least 1.
        vocabulary: A text file of words that may be neighbours, one a line, or the name of a
            shipped list (``artists``), without the concepts; by default the world's labels, and of
            a style other styles.
        template: Sentence with ``{}`` for the words; by default a short one of the concept's kind.
        images: Number of images of each prompt, at least 1.
        rollout_steps: Sampling steps of each, at least 1.
        guidance: Scale of classifier-free guidance of the rollouts.
        threshold: Standard deviations from the mean score of the neighbours to the gate's centre,
            above 0.
        kwargs: Arguments of `ErasureModule`.

    Raises:
        ErasureError: If a number is out of range, or the template has no place for the words.
    """

    needs = frozenset({"cross-attention"})

    def __init__(
        self,
        *,
        rank: int = 1,
        anchor_rank: int = 1,
        gate_rank: int = 1,
        neighbours: int = 3,
        vocabulary: str | None = None,
        template: str | None = None,
        images: int = 3,
        rollout_steps: int = 50,
        guidance: float = 7.5,
        threshold: float = 2.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        ranks = {"rank": rank, "anchor_rank": anchor_rank, "gate_rank": gate_rank}
        counts = {"neighbours": neighbours, "images": images, "rollout_steps": rollout_steps}
        require("GLoCE", at_least=1, **ranks, **counts)
        require("GLoCE", at_least=0, guidance=guidance)
        require("GLoCE", above=0, threshold=threshold)
        if template is not None and "{}" not in template:
            raise ErasureError(
                f"GLoCE needs {{}} in its template for the concept's words; found {template!r}."
            )
        self.rank = rank
        self.anchor_rank = anchor_rank
        self.gate_rank = gate_rank
        self.neighbours = neighbours
        self.vocabulary = vocabulary
        self.template = template
        self.images = images
        self.rollout_steps = rollout_steps
        self.guidance = guidance
        self.threshold = threshold

    def plan(self) -> AdapterPlan:
        """One adapter for each cross-attention.

        Raises:
            ErasureError: If a rank is above the width of a layer.
        """
        layers = self.backbone.adaptable("text attention")
        narrowest = min(cast(int, layer.out_dim) for layer in layers.values())
        ranks = {"rank": self.rank, "anchor_rank": self.anchor_rank, "gate_rank": self.gate_rank}
        require("GLoCE", at_most=narrowest, **ranks)
        settings = {
            "concepts": len(self.concepts),
            "rank": self.anchor_rank,
            "gate_rank": self.gate_rank,
        }
        return AdapterPlan("gloce", [name.removeprefix("denoiser.") for name in layers], settings)

    def solve(self) -> dict[str, Tensor]:
        """The adapters' parameters: for each concept those of every layer."""
        solved = [self.solve_concept(concept) for concept in self.concepts]
        return {name: torch.stack([each[name] for each in solved]) for name in solved[0]}

    def solve_concept(self, concept: Concept) -> dict[str, Tensor]:
        """Parameters of a concept's maps and gates, by their names in the backbone."""
        own = self.moments(self.sentence(concept, concept.name))
        anchor = self.moments(self.sentence(concept, concept.anchor) if concept.anchor else "")
        maps = {name: self.low_rank_map(own[name], anchor[name]) for name in own}
        scores: dict[str, list[Tensor]] = {name: [] for name in own}

        def score(name: str, outputs: Tensor) -> None:
            """Adds the largest score in each image."""
            mean = maps[name]["gate_mean"]
            basis = maps[name]["gate"]
            values = gate_scores(outputs.double().unsqueeze(2), mean[None], basis[None])
            scores[name] += values.flatten(1).amax(dim=1).unbind()

        for prompt in self.near_prompts(concept):
            self.visit(prompt, score)
        solved: dict[str, Tensor] = {}
        for name, values in maps.items():
            stacked = torch.stack(scores[name])
            values["centre"] = stacked.mean() + self.threshold * stacked.std(
                correction=int(len(stacked) > 1)
            )
            values["slope"] = torch.full_like(
                values["centre"], log(_OPEN / (1 - _OPEN)) / (0.001 * self.threshold)
            )
            solved |= {f"{name}.{ADAPTER_CHILD}.{key}": value for key, value in values.items()}
        return solved

    def low_rank_map(self, own: Moments, anchor: Moments) -> dict[str, Tensor]:
        """``m_a``, ``V_a``, ``V_a^T (I - V V^T)``, ``m``, and of the gate ``m_a`` and ``V_g``."""
        concept_basis = leading(own.around(own.mean), self.rank)
        anchor_basis = leading(anchor.around(anchor.mean), self.anchor_rank)
        return {
            "down": anchor_basis - anchor_basis @ concept_basis.mT @ concept_basis,
            "up": anchor_basis,
            "bias": anchor.mean,
            "mean": own.mean,
            "gate": leading(own.around(anchor.mean), self.gate_rank),
            "gate_mean": anchor.mean,
        }

    def moments(self, prompt: str) -> dict[str, Moments]:
        """Moments of every layer's outputs at all scales, in rollouts for a prompt."""
        sums: dict[str, Moments] = {}

        def add(name: str, outputs: Tensor) -> None:
            """Adds the outputs of all images at one step."""
            if name not in sums:
                sums[name] = Moments.empty(outputs.shape[2], outputs.device)
            sums[name].add(at_scales(outputs))

        self.visit(prompt, add)
        return sums

    @torch.no_grad()
    def visit(self, prompt: str, visitor: Callable[[str, Tensor], None]) -> None:
        """Rolls the original out for a prompt, and calls ``visitor(layer, outputs)`` at each step.

        Outputs ``(images, pixels, D)`` are those of the prediction with the prompt.
        """
        seeds = [derive_seed(self.seed, i, 11) % 2**31 for i in range(self.images)]
        conditioning = self.original.encode([prompt] * self.images)

        def hook(name: str, layer: nn.Module, inputs: tuple[Any, ...], outputs: Tensor) -> None:
            visitor(name, outputs[-self.images :])

        with ExitStack() as hooks:
            for name, layer in self.original.adaptable("text attention").items():
                hooks.callback(layer.register_forward_hook(partial(hook, name)).remove)
            steps = rollout(
                self.original, conditioning, seeds, steps=self.rollout_steps, guidance=self.guidance
            )
            for _ in steps:
                pass

    def near_prompts(self, concept: Concept) -> list[str]:
        """The nearest of the prompts for which gates stay closed.

        Raises:
            ErasureError: If there are none.
        """
        terms = [callback for callback in self.retention if not callback.of_states]
        # The empty prompt, which some callbacks retain, is no neighbour.
        retained = [prompt for callback in terms for prompt in callback.retained if prompt]
        prompts = retained or [self.sentence(concept, word) for word in self.candidates(concept)]
        if not prompts:
            raise ErasureError(
                f"GLoCE needs words beside {concept.name!r} for which its gates stay closed; found"
                " none. Set vocabulary to a file of them."
            )
        own = self._first_states([self.sentence(concept, concept.name)])
        states = [
            self._first_states(prompts[i : i + _CHUNK]) for i in range(0, len(prompts), _CHUNK)
        ]
        similarity = (torch.cat(states) * own).sum(dim=2).mean(dim=1)
        nearest = similarity.argsort(descending=True)[: self.neighbours].tolist()
        return [prompts[i] for i in nearest]

    def candidates(self, concept: Concept) -> list[str]:
        """Words that may be neighbours of a concept."""
        if self.vocabulary:
            return without_concepts(read_prompt_list(self.vocabulary, "GLoCE"), self.concepts)
        vocabulary = Vocabulary(self.original.world, self.concepts)
        return vocabulary.other_styles if concept.kind == "style" else vocabulary.others

    def sentence(self, concept: Concept, words: str) -> str:
        """The sentence of images of words in a concept's place."""
        return (self.template or _TEMPLATES[concept.kind]).replace("{}", words)

    def _first_states(self, prompts: Sequence[str]) -> Tensor:
        """Directions of the states of the first tokens after the start, ``(B, tokens, D)``."""
        encoded = self.original.encode(prompts)
        first = int(encoded.roles[0, 0] == START)  # T5 has no start token
        return normalize(encoded.tokens[:, first : first + _TOKENS].float(), dim=2)


def at_scales(outputs: Tensor) -> Tensor:
    """Outputs ``(B, pixels, D)`` of square images and their means at three coarser scales.

    Returns:
        Rows ``(N, D)``.
    """
    side = isqrt(outputs.shape[1])
    image = outputs.mT.reshape(len(outputs), outputs.shape[2], side, -1)
    images = [image]
    while len(images) < _SCALES and min(images[-1].shape[2:]) > 1:
        images.append(avg_pool2d(images[-1], 2))
    return torch.cat([each.flatten(2).mT.flatten(0, 1) for each in images])


def leading(matrix: Tensor, count: int) -> Tensor:
    """The ``count`` leading eigenvectors of a symmetric matrix, as rows ``(count, D)``."""
    _, vectors = torch.linalg.eigh(matrix)
    rows: Tensor = vectors.mT.flip(0)[:count].contiguous()
    return rows
