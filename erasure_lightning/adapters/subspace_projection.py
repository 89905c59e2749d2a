"""Projection of trigger tokens out of a concept's subspace, as a rule of a CLIP text encoder.

Yoon et al., SAFREE, arXiv 2410.12761; code jaehong31/SAFREE @ b8b2c3f.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from erasure_lightning.adapters.base import Rule, loaded

#: Id of the token that stands in place of a masked one: the ``!`` of CLIP.
_MASK = 0


class SubspaceProjection(Rule):
    """Projects the states of trigger tokens out of the concepts' subspace, into the prompt's own.

    With ``p_i`` the state at the end of text of the prompt whose word ``i`` is masked, ``P_C`` the
    projection onto the subspace and ``P_I`` that onto the span of the ``p_i``, word ``i`` is a
    trigger unless ``d_i = |(I - P_C) p_i|`` is below ``1 + alpha`` times the mean of the others:
    without it the prompt is farther from the concept. A trigger's state ``s`` becomes
    ``s + f ((I - P_C) P_I s - s)``, with ``f = sigmoid(steepness (beta - threshold))`` and
    ``beta`` one minus the mean cosine, over all tokens, of ``s`` and its projection.

    Args:
        layer: A `CLIPTextModel`, whose last states the denoiser reads.
        dimensions: Largest dimension of the subspace.
        alpha: Tolerance of the triggers.
        steepness, threshold: Parameters of the filter ``f``, which is 1 without them.
        tail: Whether all states behind a trigger change with it, which they have read.
    """

    def __init__(
        self,
        layer: nn.Module,
        *,
        dimensions: int,
        alpha: float,
        steepness: float | None = None,
        threshold: float | None = None,
        tail: bool = False,
    ) -> None:
        super().__init__(layer)
        config = cast(Any, layer).config
        #: Orthonormal rows that span the subspace; rows beyond its dimension are zeros.
        self.basis = nn.Parameter(torch.zeros(dimensions, config.hidden_size), requires_grad=False)
        #: Ids from here on are of tokens that were added since, by textual inversion.
        self._vocabulary: int = config.vocab_size
        self.alpha = alpha
        self.steepness = steepness
        self.threshold = threshold
        self.tail = tail
        self._is_masking = False

    def is_identity(self) -> bool:
        """Whether the subspace has no dimension."""
        return not self.basis.any()

    def change(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The encoder's output with other states of the triggers; its pooled state stays."""
        if self._is_masking or self.strength == 0:
            return output
        if kwargs.get("output_hidden_states"):
            warnings.warn(
                "SAFREE changes the text encoder's last states; found a pipeline that reads others"
                " too, as with clip_skip, on which it does not act. Leave clip_skip out.",
                stacklevel=2,
            )
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        ends = self._ends(layer, ids)
        words = [(row, i) for row, end in enumerate(ends) for i in range(1, end)]
        if not words:
            return output
        summaries = self._masked_summaries(layer, ids, words, ends)
        states = output[0]
        changed = list(states.unbind())
        for row, end in enumerate(ends):
            own = summaries[[k for k, (other, _) in enumerate(words) if other == row]]
            if len(own):
                changed[row] = self._projected(states[row], own, end)
        new = torch.stack(changed)
        if isinstance(output, tuple):
            return (new, *output[1:])
        return replace(output, last_hidden_state=new)

    def _ends(self, layer: nn.Module, ids: Tensor) -> list[int]:
        """Position of each prompt's end-of-text token."""
        number = cast(Any, layer).config.eos_token_id
        # Configs of 2022 say 2, where the end-of-text token has the largest of the original ids.
        known = torch.where(ids < self._vocabulary, ids, -1)
        ends = known.argmax(dim=1) if number == 2 else (ids == number).int().argmax(dim=1)
        return cast(list[int], ends.tolist())

    def _masked_summaries(
        self,
        layer: nn.Module,
        ids: Tensor,
        words: Sequence[tuple[int, int]],
        ends: Sequence[int],
    ) -> Tensor:
        """``p_i`` of every word, ``(N, D)``: states at the end of text with it masked."""
        inputs = cast(Any, getattr(layer, "text_model", layer)).embeddings
        rows, positions = torch.tensor(words, device=ids.device).unbind(dim=1)
        # What the encoder has just read: embeddings that an attack optimises are in no ids.
        masked = inputs(input_ids=ids)[rows].clone()
        each = torch.arange(len(rows), device=ids.device)
        with loaded(inputs.token_embedding, inputs.position_embedding):
            mask = inputs.token_embedding.weight[_MASK]
            masked[each, positions] = mask + inputs.position_embedding.weight[positions]
        self._is_masking = True
        handle = inputs.register_forward_hook(lambda *_: masked)
        try:
            states = cast(Tensor, layer(input_ids=ids[rows]).last_hidden_state)
            return states[each, [ends[row] for row, _ in words]]
        finally:
            handle.remove()
            self._is_masking = False

    def _projected(self, states: Tensor, summaries: Tensor, end: int) -> Tensor:
        """The states of a prompt ``(L, D)`` with its triggers projected.

        Args:
            states: The prompt's, ``(L, D)``.
            summaries: Its ``p_i``, ``(n, D)``.
            end: Position of its end-of-text token.
        """
        read = states.double()
        triggers = self.triggers(summaries, read[end : end + 1])
        projected = self.project(read, summaries)
        share = self.strength * self.share(read[: end + 1], projected[: end + 1])
        changed = torch.zeros(len(read), dtype=torch.bool, device=read.device)
        changed[1:end] = triggers
        if self.tail:
            changed = changed.cumsum(dim=0) > 0
        return torch.where(changed.unsqueeze(1), read.lerp(projected, share), read).to(states)

    def outside(self, states: Tensor) -> Tensor:
        """``(I - P_C) s`` of states ``(N, D)``, in float64."""
        basis = self.basis.double()
        inside: Tensor = states.double() @ basis.mT @ basis
        return states.double() - inside

    def project(self, states: Tensor, summaries: Tensor) -> Tensor:
        """``(I - P_C) P_I s`` of states ``(N, D)``, with ``P_I`` of summaries ``(n, D)``."""
        span = summaries.double()
        own: Tensor = states.double() @ torch.linalg.pinv(span) @ span
        return self.outside(own)

    def triggers(self, summaries: Tensor, own: Tensor) -> Tensor:
        """Mask ``(n,)`` of the words without which a prompt is farther from the concepts.

        A single word, which has no others, is compared with the prompt itself.

        Args:
            summaries: ``p_i``, ``(n, D)``.
            own: State of the prompt at the end of text, ``(1, D)``.
        """
        distances = self.outside(summaries).norm(dim=1)
        if len(distances) == 1:
            others = self.outside(own).norm(dim=1)
        else:
            others = (distances.sum() - distances) / (len(distances) - 1)
        safe: Tensor = distances < (1 + self.alpha) * others
        return ~safe

    def share(self, states: Tensor, projected: Tensor) -> Tensor:
        """The filter ``f``, a scalar, of a prompt's states and their projections ``(N, D)``."""
        if self.steepness is None or self.threshold is None:
            return states.new_ones(())
        beta = 1 - cosine_similarity(states, projected, dim=1).mean()
        return torch.sigmoid(self.steepness * (beta - self.threshold))


def orthonormal_basis(rows: Tensor) -> Tensor:
    """Orthonormal rows that span those given, ``(N, D)``, in float64; zeros beyond their rank."""
    _, values, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    tolerance = values[:1] * max(rows.shape) * torch.finfo(torch.float64).eps
    # In float32 rows are computed to 1e-7: what is nearer is the same row.
    spanned = values > tolerance.clamp(min=values[0] * 1e-5)
    orthonormal: Tensor = basis * spanned.unsqueeze(1)
    return orthonormal
