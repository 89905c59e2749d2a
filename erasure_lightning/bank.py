"""The bank of trajectories that training draws from, and the frozen teacher whose answers on them are kept."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.process import draw_times
from erasure_lightning.checks import require
from erasure_lightning.concepts import Batch, Phrase
from erasure_lightning.errors import ErasureError
from erasure_lightning.sampling import trajectory

#: What a teacher is asked about beside latents: the concept's sentence, its anchor's, or none.
Question = Literal["concept", "anchor", "nothing"]


class Drawn(NamedTuple):
    """A minibatch out of a `TrajectoryBank`.

    Args:
        x: Latents ``(B, C, h, w)``.
        t: Their times, ``(B,)``.
        batch: The sentences whose trajectories they lie on.
        rows: Which trajectories, ``(B,)``.
        columns: Which of their steps, ``(B,)``.
    """

    x: Tensor
    t: Tensor
    batch: Batch
    rows: Tensor
    columns: Tensor


class TrajectoryBank:
    """Trajectories walked once, every step of them kept with the predictions made on it, and drawn from ever after.

    Peers walk up to 50 steps to make one training latent; here a walk of ``steps`` steps makes ``steps`` of them, and
    what the frozen original says on a moment is asked once, however often the moment is drawn.

    Args:
        trajectories: How many to walk, at least 1, and at least one a concept; concepts take turns.
        steps: Sampling steps of each, at least 1 (50 in the official code of ESD and its kin).
        guidance: Scale of classifier-free guidance while walking.
        student: Follow the model that is trained, and not the original; then ``refresh`` says how often.
        refresh: Walk anew after so many draws; 0 for never, which is right while the frozen original is followed.
        half: Keep the latents and predictions in float16.
        batch_size: Trajectories walked side by side.

    Raises:
        ErasureError: If a count is below 1, guidance is negative, NaN or infinite, or a student is followed
            and never again.
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
        for name, value in {"trajectories": trajectories, "steps": steps, "batch_size": batch_size}.items():
            if value < 1:
                raise ErasureError(f"TrajectoryBank needs {name} of at least 1; found {value}.")
        require("TrajectoryBank", at_least=0, guidance=guidance)
        if student and refresh < 1:
            raise ErasureError(f"TrajectoryBank needs refresh of at least 1 to follow the student; found {refresh}.")
        self.trajectories = trajectories
        self.steps = steps
        self.guidance = guidance
        self.student = student
        self.refresh = refresh
        self.half = half
        self.batch_size = batch_size
        self.walked = Batch([], [], [])
        self._held: dict[str, Tensor] = {}
        self._walks = self._draws = 0

    def follow(self, backbone: Backbone, sentences: Callable[[int], Batch], seed: int) -> None:
        """Walk the trajectories if there are none, or if it is time to; all ranks, where they can only ask together.

        Args:
            backbone: Whose predictions are followed: the frozen original, or the student.
            sentences: What the trajectories draw, by the number of the walk.
            seed: Differs from rank to rank and from bank to bank.
        """
        due = not self._held or (self.refresh > 0 and self._draws >= self.refresh * self._walks)
        if not backbone.anyone(due):
            self._held = {key: value.to(_place(key, backbone)) for key, value in self._held.items()}
            return
        self.walked = sentences(self._walks)
        count = len(self.walked.concepts)
        generator = torch.Generator().manual_seed(seed + self._walks)
        seeds = torch.randint(2**31, (count,), generator=generator).tolist()
        parts = [self._walk(backbone, slice(i, i + self.batch_size), seeds) for i in range(0, count, self.batch_size)]
        self._held = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        self._walks += 1

    @torch.no_grad()
    def _walk(self, backbone: Backbone, chosen: slice, seeds: Sequence[int]) -> dict[str, Tensor]:
        x, prompts = backbone.noise(seeds[chosen]), self.walked.prompts[chosen]
        conditioning, nothing = backbone.encode(prompts), backbone.encode([""])
        moments = list(trajectory(backbone, conditioning, nothing, x, self.steps, self.guidance))
        held = {"x": torch.stack([m.x for m in moments], 1)}
        if not self.student:
            held["concept"] = torch.stack([m.conditional for m in moments], 1)
            if self.guidance > 1:
                held["nothing"] = torch.stack([m.unconditional for m in moments], 1)
        held = {key: value.half() if self.half else value for key, value in held.items()}
        known = {f"known {key}": torch.ones(value.shape[:2], dtype=torch.bool) for key, value in held.items()}
        times = torch.stack([m.t for m in moments]).to(torch.long)
        return held | known | {"t": times.expand(len(x), -1).clone()}

    def draw(self, concepts: Sequence[str]) -> Drawn:
        """A random moment of a random trajectory of each concept; each must be among those ``walked``."""
        rows = torch.tensor([self._row(concept) for concept in concepts])
        self._draws += 1
        return self.at(rows, torch.randint(self.steps, (len(rows),)))

    def at(self, rows: Tensor, columns: Tensor) -> Drawn:
        """Given steps of given trajectories, by number, ``(B,)`` both."""
        batch = Batch(*([field[i] for i in rows.tolist()] for field in self.walked))
        return Drawn(self._at("x", rows, columns), self._held["t"][rows, columns], batch, rows, columns)

    def _row(self, concept: str) -> int:
        rows = [i for i, walked in enumerate(self.walked.concepts) if walked == concept]
        return rows[int(torch.randint(len(rows), ()))]

    def _at(self, key: str, rows: Tensor, columns: Tensor) -> Tensor:
        return self._held[key][rows, columns].float()

    def recall(
        self,
        question: Question,
        drawn: Drawn,
        ask: Callable[[Tensor], Tensor],
        anyone: Callable[[bool], bool] = lambda missing: missing,
    ) -> Tensor:
        """The original's predictions at drawn moments, ``(B, C, h, w)``; it is asked only where it never was before.

        Args:
            question: What about.
            drawn: Where.
            ask: Makes the predictions for some rows of ``drawn``, given by number.
            anyone: Whether any rank lacks answers, for ranks that can only ask together (`Backbone.anyone`).
        """
        everything = torch.arange(len(drawn.rows))
        if self.student:
            return ask(everything)
        if question not in self._held:
            self._held[question] = torch.zeros_like(self._held["x"])
            self._held[f"known {question}"] = torch.zeros_like(self._held["known x"])
        held, known = self._held[question], self._held[f"known {question}"]
        new = everything[~known[drawn.rows, drawn.columns]]
        if anyone(len(new) > 0):
            new = new if len(new) else everything[:1]  # asked for the others' sake
            held[drawn.rows[new], drawn.columns[new]] = ask(new).to(held.dtype)
            known[drawn.rows[new], drawn.columns[new]] = True
        return self._at(question, drawn.rows, drawn.columns)

    def teacher(self, original: Backbone, drawn: Drawn) -> "Teacher":
        """The frozen original at drawn moments."""
        anyone = original.anyone
        return Teacher(original, drawn.x, drawn.t, drawn.batch, lambda q, ask: self.recall(q, drawn, ask, anyone))

    def nbytes(self) -> int:
        """Memory it holds, in bytes."""
        return sum(value.nbytes for value in self._held.values())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same moments."""
        return {"held": self._held, "walked": self.walked._asdict(), "walks": self._walks, "draws": self._draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self._held, self.walked = state["held"], Batch(**state["walked"])
        self._walks, self._draws = state["walks"], state["draws"]


def _place(key: str, backbone: Backbone) -> torch.device:
    """Where a bank keeps what it holds: beside the model, but for the notes of what is known."""
    return torch.device("cpu") if key.startswith("known") else backbone.device


class Teacher:
    """What the frozen original says at noisy latents: no gradient, and nothing is asked that no one wants to know.

    Args:
        original: The frozen model.
        x: Noisy latents ``(B, C, h, w)``.
        t: Their times ``(B,)``.
        batch: The sentences.
        recall: Looks the answers up where a bank may hold them; ``recall(question, ask)``.
    """

    def __init__(
        self,
        original: Backbone,
        x: Tensor,
        t: Tensor,
        batch: Batch,
        recall: Callable[[Question, Callable[[Tensor], Tensor]], Tensor] | None = None,
    ) -> None:
        self.original, self.x, self.t, self.batch = original, x, t, batch
        self._recall = recall

    @torch.no_grad()
    def says(self, prompts: Sequence[str | Phrase], rows: Tensor | None = None) -> Tensor:
        """Its predictions for prompts of your own, ``(B, C, h, w)``, at all latents or at some ``rows`` of them."""
        x, t = (self.x, self.t) if rows is None else (self.x[rows], self.t[rows])
        return self.original.denoise(x, t, self.original.encode(prompts))

    @cached_property
    def concept(self) -> Tensor:
        """``eps*(x, t, c_e)``: its predictions for the concepts' sentences, ``(B, C, h, w)``."""
        return self._answer("concept", self.batch.prompts)

    @cached_property
    def anchor(self) -> Tensor:
        """``eps*(x, t, c_a)``: for the anchors' sentences, for the empty prompt where there is none."""
        return self._answer("anchor", self.batch.alternatives)

    @cached_property
    def nothing(self) -> Tensor:
        """``eps*(x, t, 0)``: for the empty prompt."""
        return self._answer("nothing", [""] * len(self.x))

    def _answer(self, question: Question, prompts: Sequence[str | Phrase]) -> Tensor:
        if self._recall is None:
            return self.says(prompts)
        return self._recall(question, lambda rows: self.says([prompts[i] for i in rows.tolist()], rows)).to(self.x)


def pure_noise(backbone: Backbone, count: int) -> tuple[Tensor, Tensor]:
    """Latents of an empty picture noised to random times: the cheap stand-in for trajectories.

    MACE and Forget-Me-Not ship the same as ``no_real_image`` (verified in code).
    """
    t = draw_times(backbone.process, count, backbone.device)
    noise = torch.randn(count, *backbone.latent_shape()).to(backbone.device, backbone.dtype)
    return backbone.process.noise(torch.zeros_like(noise), noise, t), t
