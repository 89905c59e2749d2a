"""Semi-permeable membranes: one-dimensional adapters, gated by a prompt's similarity to a concept.

Lyu et al., One-dimensional Adapter to Rule Them All (SPM), arXiv 2312.16145; code Con6924/SPM @
3dd762e.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, normalize

from erasure_lightning.adapters.base import ADAPTER_CHILD, ADAPTER_HANDLES, Adapter, Rule, loaded


class Membrane(nn.Module):
    """Facilitated transport: computes the gate of each concept's adapters from the text states.

    The paper's openness of a concept ``c`` for a prompt ``q`` (verified in code) is the largest of
    ``s_1``, the cosine of both prompts' flattened states, and ``s_2``, the share of ``c``'s tokens
    that ``q`` has; nothing is clamped or rescaled. A denoiser reads states and no tokens, so here
    ``s_2`` is the mean, over the concept's words, of the cosine between a word's state and the
    state in ``q`` that is most like it: 1 where the words stand in the same sentence.

    ``gamma = max_j max_k (s_jk - u_jk) / (1 - u_jk)``, clamped to 0..1, over the concept's
    sentences ``j`` and both similarities ``k``. The rescaling is ours: all sentences share states,
    so that no cosine is near 0, and ``u`` is the similarity of unrelated words.

    Every row of a batch has its own gamma, also the empty prompt under guidance, where the official
    code applies a prompt's gamma to both rows. The official code also multiplies both halves of an
    adapter by gamma, which squares it, and mixes adapters of several concepts; here each is gated
    once and on its own, which is the paper's sum.

    Args:
        concepts: Number of concepts.
        sentences: Number of sentences of each concept.
        words: Largest number of tokens of a concept.
        length, width: Length and width of a prompt's states.
        transport: Whether gates depend on the prompt; else they are open for every prompt.
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
        self._fixed: Tensor | None = None

    @torch.no_grad()
    def store(self, concept: int, states: Tensor, words: Tensor) -> None:
        """Stores the states of a concept's sentences.

        Args:
            concept: Number of the concept.
            states: Text states that the denoiser reads, ``(J, L, D)``.
            words: Positions of the concept's words, boolean ``(J, L)``.
        """
        for sentence, where in enumerate(words):
            self.sentences[concept, sentence] = states[sentence]
            self.words[concept, sentence, : where.sum()] = states[sentence, where]

    def similarities(self, states: Tensor) -> Tensor:
        """``s_1`` and ``s_2`` of prompts with every sentence of every concept, ``(2, B, C, J)``.

        Args:
            states: The prompts' states, ``(B, L, D)``. Of another length than the sentences', as T5
                pads to what a pipeline's caller chooses, ``s_1`` compares what both have.
        """
        states = states.float()
        length = min(states.shape[1], self.sentences.shape[2])
        prompts = _unit(states[:, :length].flatten(1))
        sentences = _unit(self.sentences[:, :, :length].float().flatten(2))
        whole = torch.einsum("bi,cji->bcj", prompts, sentences)
        cosines = torch.einsum("bld,cjwd->bcjwl", _unit(states), _unit(self.words.float()))
        most_similar = cosines.amax(dim=4)
        is_word = self.words.abs().amax(dim=3) > 0
        by_word = (most_similar * is_word).sum(dim=3) / is_word.sum(dim=2).clamp(min=1)
        return torch.stack((whole, by_word))

    def gamma(self, states: Tensor) -> Tensor:
        """Gate of each concept for prompts' states ``(B, L, D)``, ``(B, C)`` in 0..1."""
        if not self.transport:
            return torch.ones(len(states), len(self.words), device=states.device)
        unrelated = self.unrelated.float().unsqueeze(1)
        rescaled = (self.similarities(states) - unrelated) / (1 - unrelated)
        return rescaled.clamp(0, 1).amax(dim=(0, 3))

    @contextmanager
    def fixed(self, openness: Tensor) -> Iterator[None]:
        """Context with fixed gates ``(B, C)``, whatever the prompts."""
        self._fixed = openness
        try:
            yield
        finally:
            self._fixed = None

    def update_openness(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Sets the gates before each forward of a diffusers denoiser."""
        states = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        with loaded(self):
            self.openness = self.gamma(states) if self._fixed is None else self._fixed


def _unit(vectors: Tensor) -> Tensor:
    return normalize(vectors, dim=-1)


class SemiPermeable(Adapter):
    """Adds ``sum_i gamma_i u_i (d_i . x)`` to a layer's output, one dimension a concept ``i``.

    Verified in code: no scale and no bias, ``d`` uniform in ``+-1 / sqrt(fan_in)``, ``u`` zero at
    initialisation. A convolution's ``d`` is a convolution too, with the layer's own kernel size.

    Args:
        layer: A `Linear` or `Conv2d`.
        concepts: Number of concepts.
        settings: Settings of the membrane.
    """

    #: The membrane that all adapters of a denoiser share; in a tuple, since an assigned module
    #: becomes a child.
    membrane: tuple[Membrane, ...] = ()

    def __init__(self, layer: nn.Module, *, concepts: int, **settings: Any) -> None:
        super().__init__(layer)
        weight = cast(Tensor, layer.weight)
        bound = weight[0].numel() ** -0.5
        self.down = nn.Parameter(torch.empty(concepts, *weight.shape[1:]).uniform_(-bound, bound))
        self.up = nn.Parameter(torch.zeros(concepts, len(weight)))
        self._convolution: dict[str, Any] | None = None
        if isinstance(layer, nn.Conv2d):
            self._convolution = {
                name: getattr(layer, name) for name in ("stride", "padding", "dilation")
            }

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The output ``(B, N, E)`` or ``(B, E, h, w)`` with the gated residual."""
        if self._convolution is None:
            return output + self._gated(linear(x, self.down))
        inner = conv2d(x, self.down, **self._convolution).movedim(1, -1)
        return output + self._gated(inner).movedim(-1, 1)

    def _gated(self, inner: Tensor) -> Tensor:
        openness = self.membrane[0].openness.to(inner)
        gates = openness.view(len(openness), *[1] * (inner.dim() - 2), -1)
        return (inner * gates) @ self.up.to(inner)

    def is_identity(self) -> bool:
        """Whether ``u`` of every concept is zero."""
        return not self.up.any()

    @classmethod
    def connect(cls, denoiser: nn.Module, adapters: Sequence[Rule], **settings: Any) -> None:
        """Adds a membrane to the denoiser, as its child module, and shares it with all adapters."""
        membrane = Membrane(**settings).to(next(denoiser.parameters()))
        setattr(denoiser, ADAPTER_CHILD, membrane)
        hook = denoiser.register_forward_pre_hook(membrane.update_openness, with_kwargs=True)
        setattr(denoiser, ADAPTER_HANDLES, [hook])
        for adapter in adapters:
            cast(SemiPermeable, adapter).membrane = (membrane,)
