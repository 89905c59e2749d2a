"""The bank of trajectories that training draws from, with the frozen teacher's predictions on them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.diffusion.sampling import rollout
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.latent_sources import (
    LatentSource,
    Models,
    NoisyBatch,
    Query,
    Teacher,
    random_rows,
)


class TrajectoryBank(LatentSource):
    """Denoising trajectories, cached with the teacher's predictions on them, from which batches are
    drawn.

    Peers roll out up to 50 steps for one training latent; here a rollout of ``steps`` steps makes
    ``steps`` of them, and the frozen original predicts once at each, however often it is drawn.

    Args:
        trajectories: How many to roll out, at least 1, and at least one a concept; concepts take
            turns.
        steps: Sampling steps of each, at least 1 (50 in the official code of ESD and its kin).
        guidance: Scale of classifier-free guidance of the rollouts.
        student: Follow the model that is trained, and not the original; then ``refresh`` says how
            often.
        refresh: Roll out anew after so many draws; 0 for never, which is right while the frozen
            original is followed.
        half: Keep the latents and predictions in float16.
        batch_size: Trajectories rolled out side by side.

    Raises:
        ErasureError: If a count is below 1, guidance is negative, NaN or infinite, or a student is
            followed and never again.
    """

    def __init__(
        self,
        trajectories: int = 32,
        steps: int = 50,
        guidance: float = 3.0,
        student: bool = False,
        refresh: int = 0,
        half: bool = False,
        batch_size: int = 16,
    ) -> None:
        require(
            "TrajectoryBank",
            at_least=1,
            trajectories=trajectories,
            steps=steps,
            batch_size=batch_size,
        )
        require("TrajectoryBank", at_least=0, guidance=guidance)
        if student and refresh < 1:
            raise ErasureError(
                "TrajectoryBank needs refresh of at least 1 to follow the student; found"
                f" {refresh}."
            )
        self.trajectories = trajectories
        self.steps = steps
        self.guidance = guidance
        self.student = student
        self.refresh = refresh
        self.half = half
        self.batch_size = batch_size
        #: The sentences that the trajectories were rolled out for.
        self.sentences = PromptBatch([], [], [])
        self._held: dict[str, Tensor] = {}
        self._rollouts = self._draws = 0

    def follow(self, models: Models) -> None:
        """Roll trajectories out if there are none, or if it is time to; where ranks share weights,
        all of them.
        """
        backbone = models.student if self.student else models.original
        due = not self._held or (self.refresh > 0 and self._draws >= self.refresh * self._rollouts)
        if not backbone.any_rank(due):
            self._held = {key: value.to(_place(key, backbone)) for key, value in self._held.items()}
            return
        self.sentences = models.sentences(max(self.trajectories, models.concepts), self._rollouts)
        count = len(self.sentences.concepts)
        generator = torch.Generator().manual_seed(models.seed + self._rollouts)
        seeds = torch.randint(2**31, (count,), generator=generator).tolist()
        parts = [
            self._roll_out(backbone, slice(i, i + self.batch_size), seeds)
            for i in range(0, count, self.batch_size)
        ]
        self._held = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        self._rollouts += 1

    @torch.no_grad()
    def _roll_out(
        self, backbone: Backbone, chosen: slice, seeds: Sequence[int]
    ) -> dict[str, Tensor]:
        conditioning = backbone.encode(self.sentences.prompts[chosen])
        steps = list(
            rollout(backbone, conditioning, seeds[chosen], steps=self.steps, guidance=self.guidance)
        )
        held = {"x": torch.stack([step.x for step in steps], 1)}
        if not (
            self.student or backbone.embeds_guidance
        ):  # predictions at another guidance are not the teacher's
            held["concept"] = torch.stack([step.conditional for step in steps], 1)
            if self.guidance > 1:
                held["unconditional"] = torch.stack([step.unconditional for step in steps], 1)
        held = {key: value.half() if self.half else value for key, value in held.items()}
        known = {
            f"known {key}": torch.ones(value.shape[:2], dtype=torch.bool)
            for key, value in held.items()
        }
        times = torch.stack([step.t for step in steps]).float()
        return held | known | {"t": times.expand(len(held["x"]), -1).clone()}

    def draw(self, sentences: PromptBatch, models: Models) -> NoisyBatch:
        """A random step of a random trajectory of each sentence's concept, with the trajectory's
        own sentence.
        """
        self.follow(models)
        rows = torch.tensor(random_rows(self.sentences, sentences.indices))
        self._draws += 1
        return self.at(rows, torch.randint(self.length, (len(rows),)), models.original)

    @property
    def length(self) -> int:
        """Evaluations of the denoiser on a trajectory: the steps, or more where the sampler is of
        higher order.
        """
        return self._held["t"].shape[1]

    def at(self, rows: Tensor, columns: Tensor, original: Backbone) -> NoisyBatch:
        """Given steps of given trajectories, by number, ``(B,)`` both."""
        sentences = self.sentences.rows(rows.tolist())
        x, t = self._at("x", rows, columns).to(original.dtype), self._held["t"][rows, columns]

        def recall(query: Query, predict: Callable[[Tensor], Tensor]) -> Tensor:
            return self._recall(query, rows, columns, predict, original.any_rank)

        return NoisyBatch(
            x,
            t,
            sentences,
            Teacher(original, x, t, sentences, None if self.student else recall),
            rows,
        )

    def _at(self, key: str, rows: Tensor, columns: Tensor) -> Tensor:
        return self._held[key][rows, columns].float()

    def _recall(
        self,
        query: Query,
        rows: Tensor,
        columns: Tensor,
        predict: Callable[[Tensor], Tensor],
        any_rank: Callable[[bool], bool],
    ) -> Tensor:
        """The original's predictions at steps of trajectories ``(B, C, h, w)``; each is made once.

        Args:
            query: For what.
            rows: Trajectories, ``(B,)``.
            columns: Their steps, ``(B,)``.
            predict: Makes the predictions of some of the ``B``, by number.
            any_rank: Whether any rank lacks predictions, for ranks that can only predict together
                (`Backbone.any_rank`).
        """
        if query not in self._held:
            self._held[query] = torch.zeros_like(self._held["x"])
            self._held[f"known {query}"] = torch.zeros_like(self._held["known x"])
        held, known = self._held[query], self._held[f"known {query}"]
        every = torch.arange(len(rows))
        new = every[~known[rows, columns]]
        if any_rank(len(new) > 0):
            new = new if len(new) else every[:1]  # a forward that only the other ranks need
            held[rows[new], columns[new]] = predict(new).to(held.dtype)
            known[rows[new], columns[new]] = True
        return self._at(query, rows, columns)

    def nbytes(self) -> int:
        """Memory it holds, in bytes."""
        return sum(value.nbytes for value in self._held.values())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same steps."""
        counts = {"rollouts": self._rollouts, "draws": self._draws}
        return {"held": self._held, "sentences": self.sentences._asdict(), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` left off."""
        self._held, self.sentences = state["held"], PromptBatch(**state["sentences"])
        self._rollouts, self._draws = state["rollouts"], state["draws"]


def _place(key: str, backbone: Backbone) -> torch.device:
    """Where a bank keeps what it holds: beside the model, but for the notes of what is known."""
    return torch.device("cpu") if key.startswith("known") else backbone.device
