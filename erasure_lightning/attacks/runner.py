"""Runs an attack on every concept with every seed, and writes what came of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL.Image import Image
from safetensors.torch import save
from torch import Tensor

from erasure_lightning.attacks import ATTACKS
from erasure_lightning.attacks.base import Attack, Found
from erasure_lightning.attacks.curve import plot_curve
from erasure_lightning.attacks.outcome import ASKED, OUTCOME_FILE, Finding, Outcome, Point
from erasure_lightning.attacks.target import Case, Target
from erasure_lightning.callbacks.cost import peak_memory
from erasure_lightning.checks import require_finite
from erasure_lightning.concepts.concept import shortened_names
from erasure_lightning.concepts.vocabulary import evenly_spaced
from erasure_lightning.data.image_grid import GridRow, draw_grid, png_bytes, to_pil
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.diffusion.finite_images import require_finite_images
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.seed_statistics import SeedMean
from erasure_lightning.runs.folder import slug

#: Rows of the sheet at most, or nobody could read it.
ROWS = 24

#: What stands above the pictures of an attack without a curve.
ATTACKED = "under attack"


class Attempt(NamedTuple):
    """One attack on one concept, with its pictures ``(N, 3, H, W)``.

    Args:
        case: What was tried.
        found: What came of it; its pictures are the edited model's under attack.
        original: The original's pictures for the plain sentence at the same seeds.
        plain: The edited model's.
        share: How many of each kind show the concept, 0..1, in the order of `ASKED`.
        curve: The same of the pictures of each budget.
        controls: The same of each control.
    """

    case: Case
    found: Found
    original: Tensor
    plain: Tensor
    share: tuple[float, float, float]
    curve: dict[float, float]
    controls: dict[str, float]

    @property
    def file(self) -> str | None:
        """Where what it found is written, if that is more than words."""
        return (
            f"{slug(self.case.concept.name)}-{self.case.seed}.safetensors"
            if self.found.tensors
            else None
        )


def attack_all(
    attack: Attack, target: Target, tell: Callable[[str], None] = print
) -> tuple[Outcome, list[Attempt]]:
    """Attack every concept with every seed.

    Args:
        attack: What to try.
        target: Whom to try it on.
        tell: Is told how each attempt went, in a line.

    Returns:
        The outcome, without what a `Target` cannot know (method, edit), and all attempts with their
        pictures.

    Raises:
        ErasureError: If an argument of the attack, or a picture, is NaN or infinite.
    """
    require_finite(type(attack).__name__, attack.arguments())
    started, attempts = time.monotonic(), list[Attempt]()
    seconds = 0.0
    with EvaluationCounter([target.edited.denoiser, target.original.denoiser]) as tally:
        for seed in target.seeds:
            started = time.monotonic()
            found = attack.run(target, seed)
            seconds += time.monotonic() - started
            counted = tally.evaluations, tally.backwards
            attempts += [
                _judged(target, *pair) for pair in zip(target.cases(seed), found, strict=True)
            ]
            tally.evaluations, tally.backwards = (
                counted  # what judging takes is no part of the attack
            )
            for attempt in attempts[-len(found) :]:
                tell(_line(attempt))
    cost = {
        "seconds": round(seconds, 2),
        "evaluations": tally.evaluations,
        "backwards": tally.backwards,
    }
    return (
        _outcome(
            attack,
            target,
            attempts,
            cost | {"peak_gib": round(peak_memory(target.edited.device), 3)},
        ),
        attempts,
    )


def _judged(target: Target, case: Case, found: Found) -> Attempt:
    original = target.draw(
        target.original.encode([case.sentence]), case.seeds, model=target.original
    )
    plain = target.draw(target.edited.encode([case.sentence]), case.seeds)
    _check(target, case, found, original, plain)
    shares = [target.share(case, pictures) for pictures in (original, plain, found.pictures)]
    curve = {budget: target.share(case, pictures) for budget, pictures in found.curve.items()}
    controls = {name: target.share(case, pictures) for name, pictures in found.controls.items()}
    return Attempt(case, found, original, plain, (shares[0], shares[1], shares[2]), curve, controls)


def _check(target: Target, case: Case, found: Found, original: Tensor, plain: Tensor) -> None:
    """Raise if a picture holds NaN or infinity: a scorer would take it for one without the concept."""
    require_finite_images(original, "original", target.original, [case.sentence] * len(original))
    require_finite_images(plain, "edited", target.edited, [case.sentence] * len(plain))
    for pictures in (found.pictures, *found.curve.values(), *found.controls.values()):
        require_finite_images(pictures, "attacked", target.edited, [case.sentence] * len(pictures))


def _line(attempt: Attempt) -> str:
    original, plain, attacked = attempt.share
    words = f" by {attempt.found.prompt!r}" if attempt.found.prompt is not None else ""
    return (
        f"{attempt.case.concept.name}, seed {attempt.case.seed}: recognised in"
        f" {attacked:.0%}{words} (plain {plain:.0%}, original {original:.0%})"
    )


def _outcome(
    attack: Attack, target: Target, attempts: Sequence[Attempt], cost: dict[str, float]
) -> Outcome:
    cls, name = type(attack), type(attack).__name__
    return Outcome(
        attack=name,
        class_path=f"{cls.__module__}.{cls.__qualname__}",
        arguments=attack.arguments(),
        paper=ATTACKS[name].paper if name in ATTACKS else "",
        method="",
        concepts=[c.name for c in target.concepts],
        edit="",
        success={
            asked: _estimate(target, attempts, [a.share[i] for a in attempts])
            for i, asked in enumerate(ASKED)
        },
        found=[
            Finding(a.case.concept.name, a.case.seed, a.share[2], a.found.prompt, a.file)
            for a in attempts
        ],
        curve=_curve(target, attempts),
        cost=cost,
        protocol=target.protocol,
        axis=cls.axis,
        controls={
            name: _estimate(target, attempts, [a.controls[name] for a in attempts])
            for name in attempts[0].controls
        },
    )


def _estimate(target: Target, attempts: Sequence[Attempt], shares: Sequence[float]) -> Estimate:
    mean, each = SeedMean(target.seeds), target.trials.pictures
    mean.update(torch.tensor(shares), [a.case.seed for a in attempts])
    estimate: Estimate = mean.compute()
    return estimate._replace(pictures=estimate.pictures * each)


def _curve(target: Target, attempts: Sequence[Attempt]) -> list[Point] | None:
    """Mean success of all attempts at each budget."""
    points = []
    for budget in attempts[0].curve:
        at = _estimate(target, attempts, [a.curve[budget] for a in attempts])
        points.append(Point(budget, at.mean, at.low, at.high))
    return points or None


def write_outcome(folder: Path, outcome: Outcome, attempts: Sequence[Attempt]) -> None:
    """Write the pictures, what was found, and ``attack.json`` last: where it lies, the rest does
    too.
    """
    for attempt in attempts:
        if attempt.file:
            tensors = {
                name: value.detach().cpu().contiguous()
                for name, value in attempt.found.tensors.items()
            }
            write_atomically(folder / attempt.file, save(tensors))
    write_atomically(folder / "grid.png", png_bytes(sheet(outcome, attempts)))
    if outcome.curve:
        write_atomically(folder / "curve.png", plot_curve(outcome))
    outcome.save(folder / OUTCOME_FILE)


def sheet(outcome: Outcome, attempts: Sequence[Attempt]) -> Image:
    """Original, edited and attacked pictures side by side, from the same noise where the attack
    keeps it.

    Of a curve the pictures at every budget, and those of the controls behind.
    """
    by_concept = sorted(attempts, key=lambda a: outcome.concepts.index(a.case.concept.name))
    lines = [
        GridRow(
            a.case.concept.name,
            (
                a.found.prompt
                if a.found.prompt is not None
                else f"{a.case.sentence} (seed {a.case.seed})"
            ),
            [to_pil(pictures[0]) for pictures in _shown(a).values()],
        )
        for a in evenly_spaced(by_concept, ROWS)
    ]
    by = f" erased by {outcome.method}" if outcome.method else ""
    title = f"{outcome.attack} on {shortened_names(outcome.concepts)}{by}"
    p = outcome.protocol
    subtitle = (
        f"{p.steps} steps, guidance {p.guidance:g}; brought back: {outcome.success['attacked']}"
    )
    subtitle += f"; numbers are {outcome.axis}" if outcome.axis else ""
    return draw_grid(title, subtitle, list(_shown(attempts[0])), lines)


def _shown(attempt: Attempt) -> dict[str, Tensor]:
    """Pictures ``(N, 3, H, W)`` by what stands above them."""
    found = attempt.found
    attacked = {f"{budget:g}": pictures for budget, pictures in found.curve.items()} or {
        ATTACKED: found.pictures
    }
    controls = {f"control: {name}": pictures for name, pictures in found.controls.items()}
    return {"original": attempt.original, "edited": attempt.plain} | attacked | controls


def of_edit(outcome: Outcome, method: str, edit: str, paper: str = "") -> Outcome:
    """The outcome with what its edit and its package say."""
    return replace(outcome, method=method, edit=edit, paper=outcome.paper or paper)
