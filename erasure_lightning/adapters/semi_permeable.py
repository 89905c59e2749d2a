"""Semi-permeable membranes: one-dimensional adapters, one a concept, open as far as a prompt is
near their concept.

Lyu et al., One-dimensional Adapter to Rule Them All (SPM), arXiv 2312.16145; code Con6924/SPM @
3dd762e.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, normalize

from erasure_lightning.adapters.base import CHILD, HANDLES, Adapter


class Membrane(nn.Module):
    """Facilitated transport: how far the adapters of each concept are open, read off what the
    denoiser is told.

    The paper's openness of a concept ``c`` for a prompt ``q`` (verified in code) is the largest of
    ``s_1``, the cosine of both prompts' flattened states, and ``s_2``, the share of ``c``'s tokens
    that ``q`` has; nothing is clamped or rescaled. A denoiser sees states and no tokens, so here
    ``s_2`` is the mean, over the concept's words, of the cosine between a word's state and the
    state in ``q`` that is most like it: 1 where the words stand in the same sentence.

    ``gamma = max_j max_k (s_jk - u_jk) / (1 - u_jk)``, clamped to 0..1, over the concept's
    sentences ``j`` and both similarities ``k``. The rescaling is ours: all sentences share states,
    so that no cosine is near 0, and ``u`` is what has nothing to do with the concept.

    Every row of a batch has its own gamma, and under guidance the empty prompt has that of the
    empty prompt; the official code gives a prompt's to both rows. It also multiplies both halves of
    an adapter by it, which makes gamma squared of it, and mixes adapters of several concepts; here
    each counts once and apart, which is the paper's sum.

    Args:
        concepts: How many.
        sentences: Of each concept.
        words: At most in a concept.
        length, width: Of a prompt's states.
        transport: Whether there is any; else everything is open for every prompt.
    """

    sentences: nn.Parameter
    words: nn.Parameter

    def __init__(
        self,
        *,
        concepts: int,
        sentences: int,
        words: int,
        length: int,
        width: int,
        transport: bool = True,
    ) -> None:
        super().__init__()
        shapes = {"sentences": (length, width), "words": (words, width)}
        for name, shape in shapes.items():
            self.register_parameter(
                name, nn.Parameter(torch.zeros(concepts, sentences, *shape), requires_grad=False)
            )
        self.unrelated = nn.Parameter(torch.zeros(2, concepts, sentences), requires_grad=False)
        self.transport = transport
        self.openness = torch.ones(1, concepts)
        self._held: Tensor | None = None

    @torch.no_grad()
    def remember(self, concept: int, states: Tensor, words: Tensor) -> None:
        """Take in a concept's sentences.

        Args:
            concept: Its number.
            states: What the denoiser is told, ``(J, L, D)``.
            words: Where the concept's words stand, boolean ``(J, L)``.
        """
        for sentence, where in enumerate(words):
            self.sentences[concept, sentence] = states[sentence]
            self.words[concept, sentence, : where.sum()] = states[sentence, where]

    def similarities(self, states: Tensor) -> Tensor:
        """``s_1`` and ``s_2`` of prompts' states ``(B, L, D)`` with every concept's sentences,
        ``(2, B, C, J)``.
        """
        states = states.float()
        whole = torch.einsum(
            "bi,cji->bcj", _unit(states.flatten(1)), _unit(self.sentences.float().flatten(2))
        )
        alike = torch.einsum("bld,cjwd->bcjwl", _unit(states), _unit(self.words.float())).amax(
            dim=4
        )
        there = self.words.abs().amax(dim=3) > 0
        return torch.stack((whole, (alike * there).sum(dim=3) / there.sum(dim=2).clamp(min=1)))

    def gamma(self, states: Tensor) -> Tensor:
        """How far each concept's adapters open for prompts' states ``(B, L, D)``, 0..1, ``(B, C)``."""
        if not self.transport:
            return torch.ones(len(states), len(self.words), device=states.device)
        unrelated = self.unrelated.float().unsqueeze(1)
        rescaled = (self.similarities(states) - unrelated) / (1 - unrelated)
        return rescaled.clamp(0, 1).amax(dim=(0, 3))

    @contextmanager
    def held(self, openness: Tensor) -> Iterator[None]:
        """Open as given, ``(B, C)``, whatever the denoiser is told."""
        self._held = openness
        try:
            yield
        finally:
            self._held = None

    def look(self, denoiser: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Set the openness before a diffusers denoiser runs."""
        states = named["encoder_hidden_states"] if "encoder_hidden_states" in named else inputs[2]
        self.openness = self.gamma(states) if self._held is None else self._held


def _unit(vectors: Tensor) -> Tensor:
    return normalize(vectors, dim=-1)


class SemiPermeable(Adapter):
    """Adds ``sum_i gamma_i u_i (d_i . x)`` to what a layer says: one dimension for each concept
    ``i``.

    Verified in code: no scale and no bias, ``d`` uniform in ``+-1 / sqrt(fan_in)``, ``u`` begins at
    zero. A convolution's ``d`` is one too, of the layer's own kernel.

    Args:
        layer: A `Linear` or `Conv2d`.
        concepts: How many.
        settings: The membrane's.
    """

    #: What all adapters of a denoiser look at; in a tuple, since a module that is assigned becomes
    #: a part.
    membrane: tuple[Membrane, ...] = ()

    def __init__(self, layer: nn.Module, *, concepts: int, **settings: Any) -> None:
        super().__init__(layer)
        weight = cast(Tensor, layer.weight)
        bound = weight[0].numel() ** -0.5
        self.down = nn.Parameter(torch.empty(concepts, *weight.shape[1:]).uniform_(-bound, bound))
        self.up = nn.Parameter(torch.zeros(concepts, len(weight)))
        convolves = isinstance(layer, nn.Conv2d)
        self._convolution = (
            {k: getattr(layer, k) for k in ("stride", "padding", "dilation")} if convolves else None
        )

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The output ``(B, N, E)`` or ``(B, E, h, w)`` with what the open adapters add."""
        if self._convolution is not None:
            return output + self._through(
                conv2d(x, self.down, **self._convolution).movedim(1, -1)
            ).movedim(-1, 1)
        return output + self._through(linear(x, self.down))

    def _through(self, inner: Tensor) -> Tensor:
        openness = self.membrane[0].openness.to(inner)
        return (inner * openness.view(len(openness), *[1] * (inner.dim() - 2), -1)) @ self.up.to(
            inner
        )

    def is_identity(self) -> bool:
        """Whether ``u`` of every concept is zero."""
        return not self.up.any()

    @classmethod
    def watch(cls, denoiser: nn.Module, adapters: Sequence[Adapter], **settings: Any) -> None:
        """Give them a membrane; it is the denoiser's own child of that name."""
        membrane = Membrane(**settings).to(next(denoiser.parameters()))
        setattr(denoiser, CHILD, membrane)
        setattr(
            denoiser, HANDLES, [denoiser.register_forward_pre_hook(membrane.look, with_kwargs=True)]
        )
        for adapter in adapters:
            cast(SemiPermeable, adapter).membrane = (membrane,)
