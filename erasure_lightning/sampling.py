"""The one loop from noise to latents, and the bank of trajectories that training draws from."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone, Conditioning
from erasure_lightning.concepts import Phrase
from erasure_lightning.errors import ErasureError


class Moment(NamedTuple):
    """One step of a trajectory.

    Args:
        x: Latents ``(B, C, h, w)`` before the step.
        t: The time of the step, ``()``.
        conditional: The prediction for the prompts, ``(B, C, h, w)``.
        unconditional: The prediction for the empty prompt; the same tensor as ``conditional`` without guidance.
        after: Latents behind the step.
    """

    x: Tensor
    t: Tensor
    conditional: Tensor
    unconditional: Tensor
    after: Tensor


def trajectory(
    backbone: Backbone, conditioning: Conditioning, nothing: Conditioning, x: Tensor, steps: int, guidance: float
) -> Iterator[Moment]:
    """Walk from noise to latents with classifier-free guidance, as the stock diffusers pipeline does, bit for bit.

    Args:
        backbone: Whose predictions are followed.
        conditioning: Of the prompts, ``(B, L, D)``.
        nothing: Of the empty prompt, ``(1, L, D)``.
        x: Starting noise, ``(B, C, h, w)``.
        steps: Sampling steps, at least 1.
        guidance: Scale ``s`` of ``uncond + s (cond - uncond)``; at 1 or below the empty prompt is not evaluated.
    """
    scheduler = backbone.scheduler(steps)
    both = nothing.expand(len(x)) + conditioning if guidance > 1 else conditioning
    for t in scheduler.timesteps:
        doubled = torch.cat([x, x]) if guidance > 1 else x
        prediction = backbone.denoise(scheduler.scale_model_input(doubled, t), t, both)
        unconditional, conditional = prediction.chunk(2) if guidance > 1 else (prediction, prediction)
        guided = unconditional + guidance * (conditional - unconditional) if guidance > 1 else prediction
        after = scheduler.step(guided, t, x, return_dict=False)[0]
        yield Moment(x, t, conditional, unconditional, after)
        x = after


@torch.no_grad()
def sample(
    backbone: Backbone,
    prompts: Sequence[str | Phrase],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    size: int | None = None,
) -> Tensor:
    """Latents ``(B, C, h, w)`` for prompts at seeds; a seed means the same starting noise in any batch and order.

    Args:
        backbone: The model to ask.
        prompts: ``B`` prompts.
        seeds: ``B`` seeds.
        steps: Sampling steps, at least 1.
        guidance: Scale of classifier-free guidance.
        size: Height and width in pixels; the model's own by default.
    """
    x = backbone.noise(seeds, size)
    for moment in trajectory(backbone, backbone.encode(prompts), backbone.encode([""]), x, steps, guidance):
        x = moment.after
    return x


@torch.no_grad()
def draw(
    backbone: Backbone,
    prompts: Sequence[str | Phrase],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    size: int | None = None,
) -> Tensor:
    """Pictures ``(B, 3, H, W)`` in 0..1 for prompts at seeds; arguments as `sample`."""
    return backbone.decode(sample(backbone, prompts, seeds, steps=steps, guidance=guidance, size=size))


class Drawn(NamedTuple):
    """A minibatch out of a `TrajectoryBank`.

    Args:
        x: Latents ``(B, C, h, w)``.
        t: Their times, ``(B,)``.
        conditional: The teacher's predictions for their own prompts, ``(B, C, h, w)``.
        unconditional: Its predictions for the empty prompt, ``(B, C, h, w)``.
    """

    x: Tensor
    t: Tensor
    conditional: Tensor
    unconditional: Tensor


class TrajectoryBank:
    """Trajectories walked once, every step of them kept with the predictions made on it, and drawn from ever after.

    Peers walk up to 50 steps to make one training latent; here a walk of ``steps`` steps makes ``steps`` of them.

    Args:
        trajectories: How many to walk, at least 1; their prompts take turns.
        steps: Sampling steps of each, at least 1.
        guidance: Scale of classifier-free guidance while walking.
        refresh: Walk anew after so many draws; 0 for never, which is right while the frozen original is followed.
        half: Keep the latents and predictions in float16.
        batch_size: Trajectories walked side by side.

    Raises:
        ErasureError: If a count is below 1.
    """

    def __init__(
        self,
        trajectories: int = 16,
        steps: int = 20,
        guidance: float = 3.0,
        refresh: int = 0,
        half: bool = False,
        batch_size: int = 16,
    ) -> None:
        for name, value in {"trajectories": trajectories, "steps": steps, "batch_size": batch_size}.items():
            if value < 1:
                raise ErasureError(f"TrajectoryBank needs {name} of at least 1; found {value}.")
        self.trajectories = trajectories
        self.steps = steps
        self.guidance = guidance
        self.refresh = refresh
        self.half = half
        self.batch_size = batch_size
        self.prompts: list[str] = []
        self._held: dict[str, Tensor] = {}
        self._walks = self._draws = 0

    def follow(self, backbone: Backbone, prompts: Sequence[str], seed: int) -> None:
        """Walk the trajectories if there are none yet, or if it is time to walk anew.

        Args:
            backbone: Whose predictions are followed: the frozen original, or the student.
            prompts: What the trajectories draw.
            seed: Differs from rank to rank and from bank to bank.
        """
        if self._held and not (self.refresh and self._draws >= self.refresh * self._walks):
            return
        self.prompts = [prompts[i % len(prompts)] for i in range(self.trajectories)]
        generator = torch.Generator().manual_seed(seed + self._walks)
        seeds = torch.randint(2**31, (self.trajectories,), generator=generator).tolist()
        parts = [self._walk(backbone, i, seeds) for i in range(0, self.trajectories, self.batch_size)]
        self._held = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        self._walks += 1

    @torch.no_grad()
    def _walk(self, backbone: Backbone, start: int, seeds: Sequence[int]) -> dict[str, Tensor]:
        chosen = slice(start, start + self.batch_size)
        x, prompts = backbone.noise(seeds[chosen]), self.prompts[chosen]
        conditioning, nothing = backbone.encode(prompts), backbone.encode([""])
        moments = list(trajectory(backbone, conditioning, nothing, x, self.steps, self.guidance))
        held = {
            key: torch.stack([getattr(m, key) for m in moments], 1) for key in ("x", "conditional", "unconditional")
        }
        if self.half:
            held = {key: value.half() for key, value in held.items()}
        times = torch.stack([m.t for m in moments]).to(torch.long)
        return held | {"t": times.expand(len(x), -1).clone()}

    def draw(self, prompts: Sequence[str]) -> Drawn:
        """A random moment of a random trajectory for each prompt; each must be among the bank's ``prompts``."""
        rows = torch.tensor([self._row(prompt) for prompt in prompts])
        columns = torch.randint(self.steps, (len(rows),))
        self._draws += 1
        at = {key: value[rows.to(value.device), columns.to(value.device)] for key, value in self._held.items()}
        return Drawn(at["x"].float(), at["t"], at["conditional"].float(), at["unconditional"].float())

    def _row(self, prompt: str) -> int:
        rows = [i for i, walked in enumerate(self.prompts) if walked == prompt]
        return rows[int(torch.randint(len(rows), ()))]

    def nbytes(self) -> int:
        """Memory it holds, in bytes."""
        return sum(value.nbytes for value in self._held.values())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same moments."""
        return {"held": self._held, "prompts": self.prompts, "walks": self._walks, "draws": self._draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self._held, self.prompts = state["held"], state["prompts"]
        self._walks, self._draws = state["walks"], state["draws"]
