"""Safety guidance: conditional predictions are guided away from a concept, as a rule of a denoiser.

Schramowski et al., Safe Latent Diffusion, arXiv 2211.05105; code ml-research/safe-latent-diffusion
@ a42923c.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.base import Rule

#: Distance of states from the empty prompt's, as a share of their length, within which they are
#: its own: precisions differ.
_SAME = 1e-2


@dataclass(frozen=True)
class _Momentum:
    """The momentum ``nu`` after a step of a rollout.

    Args:
        nu: ``(B, C, h, w)``.
        states: Text states of its rows, ``(B, L, D)``.
        start: Time of the rollout's first step.
        time: Time of its last step so far.
    """

    nu: Tensor
    states: Tensor
    start: float
    time: float

    def precedes(self, time: float, states: Tensor) -> bool:
        """Whether a step at a time, for these states, is of the same rollout."""
        same = self.states.shape == states.shape and self.states.device == states.device
        return time < self.start and time <= self.time and same and torch.equal(self.states, states)


class SafetyGuidance(Rule):
    """Subtracts ``gamma = mu (e_s - e_u) + m nu`` from the predictions ``e_c`` for prompts.

    ``e_s`` is the prediction for the concept, ``e_u`` the unconditional one, ``mu = min(1, scale
    |e_c - e_s|)`` where ``e_c - e_s < threshold`` and 0 elsewhere, and ``nu`` the momentum of the
    steps before, ``nu' = beta nu + (1 - beta) gamma``. Guidance turns ``e_c - gamma`` into
    ``e_u + g (e_c - e_u - gamma)``.

    Rows of the empty prompt are unconditional and stay. Of a batch whose halves have the same
    latents at one time, as guidance needs them, the first half is unconditional whatever it reads,
    and gives ``e_u``; other batches cost one more prediction for it.

    Args:
        layer: A denoiser of diffusers.
        length, width: Length and width of a prompt's states.
        pooled: Size of the pooled vector that the denoiser reads; 0 for none.
        masked: Whether the denoiser reads a mask of the states.
        scale, threshold, momentum, beta: ``scale`` to ``beta``.
        until: Time, as the denoiser reads it, from which on predictions change; those before, of
            more noise, feed the momentum alone.
    """

    def __init__(
        self,
        layer: nn.Module,
        *,
        length: int,
        width: int,
        pooled: int,
        masked: bool,
        scale: float,
        threshold: float,
        momentum: float,
        beta: float,
        until: float,
    ) -> None:
        super().__init__(layer)
        shapes: dict[str, tuple[int, ...]] = {"tokens": (2, length, width)}
        if pooled:
            shapes["pooled"] = (2, pooled)
        if masked:
            shapes["read"] = (2, length)
        #: What the denoiser reads of the concept (0) and for unconditional predictions (1).
        self.texts = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(s), requires_grad=False) for name, s in shapes.items()}
        )
        self.scale = scale
        self.threshold = threshold
        self.momentum = momentum
        self.beta = beta
        self.until = until
        self._is_predicting = False
        self._last: _Momentum | None = None

    def is_identity(self) -> bool:
        """Whether the concept's states are those of unconditional predictions."""
        concept, unconditional = self.texts["tokens"]
        return torch.equal(concept, unconditional)

    def change(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The denoiser's output with other predictions for prompts."""
        if self._is_predicting or self.strength == 0:
            return output
        call = _Call(layer, args, kwargs)
        prediction: Tensor = output[0]
        halves = call.halves()
        prompts = self._prompts(call, halves)
        if not prompts.any():
            return output
        conditional = prediction[prompts]
        concept = self._predicted(call, prompts, 0)
        if halves and not prompts[:halves].any():
            unconditional = prediction[:halves][prompts[halves:]]
        else:
            unconditional = self._predicted(call, prompts, 1)
        gamma = self._gamma(conditional, concept, unconditional)
        gamma = self._with_momentum(gamma, call, call.states[prompts])
        acts = (call.times()[prompts] <= self.until).view(-1, *[1] * (gamma.dim() - 1))
        new = prediction.clone()
        new[prompts] = conditional - self.strength * torch.where(acts, gamma, 0)
        return (new, *output[1:]) if isinstance(output, tuple) else type(output)(sample=new)

    def _prompts(self, call: "_Call", halves: int) -> Tensor:
        """Mask ``(B,)`` of the rows that are not unconditional.

        States of another length than the stored ones, as T5 pads to what a pipeline's caller
        chooses, are compared in what both have.
        """
        empty = self.texts["tokens"][1].to(call.states)[: call.states.shape[1]]
        distance = (call.states[:, : len(empty)] - empty).flatten(1).norm(dim=1)
        prompts: Tensor = distance > _SAME * empty.norm()
        if halves and prompts[halves:].any():  # negative prompts in the place of empty ones
            prompts[:halves] = False
        return prompts

    def _predicted(self, call: "_Call", rows: Tensor, text: int) -> Tensor:
        """Predictions for one of the texts in some rows."""
        texts = {name: value[text] for name, value in self.texts.items()}
        self._is_predicting = True
        try:
            return call.repeated(rows, texts)
        finally:
            self._is_predicting = False

    def _gamma(self, conditional: Tensor, concept: Tensor, unconditional: Tensor) -> Tensor:
        """``mu (e_s - e_u)``, of the predictions' shape."""
        difference = conditional - concept
        mu = (self.scale * difference.abs()).clamp(max=1)
        return torch.where(difference < self.threshold, mu, 0) * (concept - unconditional)

    def _with_momentum(self, gamma: Tensor, call: "_Call", states: Tensor) -> Tensor:
        """``gamma`` with the momentum of the steps before, if the rows are a rollout's.

        Args:
            gamma: Without momentum, ``(B, C, h, w)``.
            call: The denoiser's call.
            states: The rows' text states, ``(B, L, D)``.
        """
        time = call.time()
        if time is None:  # in a loss
            return gamma
        last = self._last if self._last and self._last.precedes(time, states) else None
        nu = torch.zeros_like(gamma) if last is None else last.nu
        gamma = gamma + self.momentum * nu
        if not call.skips_blocks():
            nu = (self.beta * nu + (1 - self.beta) * gamma).detach()
            self._last = _Momentum(nu, states.detach(), last.start if last else time, time)
        return gamma


class _Call:
    """A call of a diffusers denoiser: its arguments by name, and what they say.

    Args:
        layer: The denoiser.
        args: Its positional arguments: latents, time, text states, as far as they go.
        kwargs: Its other arguments.
    """

    def __init__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.layer = layer
        self.latents = "hidden_states" if "hidden_states" in kwargs else "sample"
        self.names = (self.latents, "timestep", "encoder_hidden_states")[: len(args)]
        self.arguments = dict(zip(self.names, args, strict=True)) | kwargs
        self.x: Tensor = self.arguments[self.latents]
        self.states: Tensor = self.arguments["encoder_hidden_states"]

    def times(self) -> Tensor:
        """Times of all rows, ``(B,)``."""
        return torch.as_tensor(self.arguments["timestep"], device=self.x.device).expand(len(self.x))

    def time(self) -> float | None:
        """The time of all rows; None where they differ."""
        times = self.times()
        return times[0].item() if bool((times == times[0]).all()) else None

    def skips_blocks(self) -> bool:
        """Whether it is the second prediction of a step, as of skip-layer guidance (SD 3)."""
        return bool(self.arguments.get("skip_layers"))

    def halves(self) -> int:
        """Rows of each of two halves with the same latents at one time; 0 without such."""
        half, odd = divmod(len(self.x), 2)
        if odd or self.time() is None or not torch.equal(self.x[:half], self.x[half:]):
            return 0
        return half

    def repeated(self, rows: Tensor, texts: Mapping[str, Tensor]) -> Tensor:
        """Predictions of some rows for another text.

        Args:
            rows: Which, boolean ``(B,)``.
            texts: ``tokens`` ``(L, D)``, ``pooled`` ``(P,)`` and the mask ``read`` ``(L,)``, as far
                as the denoiser reads them.
        """
        arguments = cast(dict[str, Any], _selected(self.arguments, rows))
        count = len(arguments[self.latents])

        def each(name: str, like: Tensor) -> Tensor:
            return texts[name].to(like).expand(count, *texts[name].shape)

        arguments["encoder_hidden_states"] = each("tokens", self.states)
        if "read" in texts:
            arguments["encoder_attention_mask"] = each("read", arguments["encoder_attention_mask"])
        if "pooled_projections" in arguments:
            arguments["pooled_projections"] = each("pooled", arguments["pooled_projections"])
        elif "pooled" in texts:
            added = arguments["added_cond_kwargs"]
            embeds = each("pooled", added["text_embeds"])
            arguments["added_cond_kwargs"] = added | {"text_embeds": embeds}
        positional = [arguments.pop(name) for name in self.names]
        return cast(Tensor, self.layer(*positional, **arguments)[0])


def _selected(value: Any, rows: Tensor) -> Any:
    """Arguments with some rows of every tensor that has them."""
    if isinstance(value, Tensor) and value.dim() and len(value) == len(rows):
        return value[rows]
    if isinstance(value, dict):
        return {name: _selected(each, rows) for name, each in value.items()}
    if isinstance(value, tuple | list):  # of a ControlNet or an IP-Adapter
        return [_selected(each, rows) for each in value]
    return value
