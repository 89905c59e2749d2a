"""Runs an attack on every concept with every seed, and writes the outcome."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL.Image import Image
from safetensors.torch import save
from torch import Tensor

from erasure_lightning.attacks.base import Attack, AttackResult
from erasure_lightning.attacks.curve import plot_curve
from erasure_lightning.attacks.outcome import (
    IMAGE_KINDS,
    OUTCOME_FILE,
    CaseOutcome,
    CurvePoint,
    Outcome,
)
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.callbacks.cost import peak_memory
from erasure_lightning.checks import require_finite
from erasure_lightning.concepts.concept import shortened_names
from erasure_lightning.concepts.vocabulary import evenly_spaced
from erasure_lightning.data.image_grid import GridRow, draw_grid, png_bytes, to_pil
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.diffusion.finite_images import require_finite_images
from erasure_lightning.files.arguments import require_choices
from erasure_lightning.files.words import unique_names
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.seed_statistics import SeedMean
from erasure_lightning.runs.folder import slug

# More rows would make the grid unreadable.
_MAX_GRID_ROWS = 24

# Column heading of an attack without a curve.
_ATTACKED_HEADING = "under attack"


class ScoredImages(NamedTuple):
    """What remains of images once they are scored.

    Args:
        share: Share of them that show the concept, 0..1.
        number: How many there were.
        first: The first, for the grid.
    """

    share: float
    number: int
    first: Image


class ScoredCase(NamedTuple):
    """The scored result of one attack on one concept.

    Args:
        case: The concept, prompt and seeds.
        prompt: The adversarial prompt, of attacks that search for words.
        tensors: The result's tensors, on the CPU.
        kinds: The images of each of `IMAGE_KINDS`.
        curve: The images at each budget.
        controls: The images of each control; of a style also ``no style``, the plain thing's.
        file: Name of the file for the tensors, if there are any.
    """

    case: AttackCase
    prompt: str | None
    tensors: dict[str, Tensor]
    kinds: dict[str, ScoredImages]
    curve: dict[float, ScoredImages]
    controls: dict[str, ScoredImages]
    file: str | None


def attack_concepts(
    attack: Attack, target: AttackTarget, report: Callable[[str], None] = print
) -> tuple[Outcome, list[ScoredCase]]:
    """Attack every concept with every seed.

    Args:
        attack: The attack.
        target: The models under attack.
        report: Called with a line of text after each case.

    Returns:
        The outcome, without method, edit and paper (see `with_edit`), and all scored cases.

    Raises:
        ErasureError: If an argument of the attack, or an image, is NaN or infinite.
    """
    require_finite(type(attack).__name__, attack.arguments())
    require_choices(type(attack), attack.arguments())
    scored: list[ScoredCase] = []
    seconds = 0.0
    with EvaluationCounter([target.edited.denoiser, target.original.denoiser]) as counter:
        for seed in target.seeds:
            start = time.monotonic()
            results = attack.run(target, seed)
            seconds += time.monotonic() - start
            evaluations = counter.evaluations
            backwards = counter.backwards
            for case, result in zip(target.cases(seed), results, strict=True):
                scored.append(_score_case(target, case, result))
            # Scoring is no part of the attack's cost.
            counter.evaluations = evaluations
            counter.backwards = backwards
            for scored_case in scored[-len(results) :]:
                report(_line(scored_case))
    cost = {
        "seconds": round(seconds, 2),
        "evaluations": counter.evaluations,
        "backwards": counter.backwards,
        "peak_gib": round(peak_memory(target.edited.device), 3),
    }
    return _outcome(attack, target, scored, cost), scored


def _score_case(target: AttackTarget, case: AttackCase, result: AttackResult) -> ScoredCase:
    original_prompt = target.original.encode([case.prompt])
    original = target.generate(original_prompt, case.seeds, model=target.original)
    plain = target.generate(target.edited.encode([case.prompt]), case.seeds)
    _require_finite(target, case, result, original, plain)
    controls = dict(result.controls)
    if unstyled := target.unstyled_prompt(case):
        # Images that name no style have one nevertheless, at times the erased one.
        controls["no style"] = target.generate(target.edited.encode([unstyled]), case.seeds)

    def scored(images: Tensor) -> ScoredImages:
        return ScoredImages(target.success_rate(case, images), len(images), to_pil(images[0]))

    every = zip(IMAGE_KINDS, (original, plain, result.images), strict=True)
    return ScoredCase(
        case,
        result.prompt,
        {name: value.detach().cpu().contiguous() for name, value in result.tensors.items()},
        {kind: scored(images) for kind, images in every},
        {budget: scored(images) for budget, images in result.curve.items()},
        {name: scored(images) for name, images in controls.items()},
        _tensor_file(target, case) if result.tensors else None,
    )


def _tensor_file(target: AttackTarget, case: AttackCase) -> str:
    """Name of the file for a case's tensors; names such as C++ and C# differ in no letter."""
    names = unique_names(slug(concept.name) for concept in target.concepts)
    return f"{names[target.concepts.index(case.concept)]}-{case.seed}.safetensors"


def _require_finite(
    target: AttackTarget, case: AttackCase, result: AttackResult, original: Tensor, plain: Tensor
) -> None:
    """Raise if an image holds NaN or infinity: a scorer would not see the concept in it."""
    prompts = [case.prompt] * len(case.seeds)
    require_finite_images(original, "original", target.original, prompts)
    require_finite_images(plain, "edited", target.edited, prompts)
    for images in (result.images, *result.curve.values(), *result.controls.values()):
        prompts = [case.prompt] * len(images)
        require_finite_images(images, "attacked", target.edited, prompts)


def _line(scored: ScoredCase) -> str:
    original, plain, attacked = (scored.kinds[kind].share for kind in IMAGE_KINDS)
    case = scored.case
    by = "" if scored.prompt is None else f" by {scored.prompt!r}"
    return (
        f"{case.concept.name}, seed {case.seed}: recognised in {attacked:.0%}{by}"
        f" (plain {plain:.0%}, original {original:.0%})"
    )


def _outcome(
    attack: Attack, target: AttackTarget, scored: Sequence[ScoredCase], cost: dict[str, float]
) -> Outcome:
    cls = type(attack)
    return Outcome(
        attack=cls.__name__,
        class_path=f"{cls.__module__}.{cls.__qualname__}",
        arguments=attack.arguments(),
        paper="",
        method="",
        concepts=[c.name for c in target.concepts],
        edit="",
        success={
            kind: _estimate(target, [(j.case, j.kinds[kind]) for j in scored])
            for kind in IMAGE_KINDS
        },
        cases=[
            CaseOutcome(
                j.case.concept.name, j.case.seed, j.kinds["attacked"].share, j.prompt, j.file
            )
            for j in scored
        ],
        curve=_curve(target, scored),
        cost=cost,
        protocol=target.protocol,
        axis=cls.axis,
        controls={
            control: _estimate(
                target, [(j.case, j.controls[control]) for j in scored if control in j.controls]
            )
            for control in dict.fromkeys(name for j in scored for name in j.controls)
        },
    )


def _estimate(target: AttackTarget, scored: Sequence[tuple[AttackCase, ScoredImages]]) -> Estimate:
    """The mean over seeds of the cases' shares; it counts images, not cases."""
    mean = SeedMean(target.seeds)
    mean.update(torch.tensor([images.share for _, images in scored]), [c.seed for c, _ in scored])
    estimate: Estimate = mean.compute()
    return estimate._replace(images=sum(images.number for _, images in scored))


def _curve(target: AttackTarget, scored: Sequence[ScoredCase]) -> list[CurvePoint] | None:
    """Mean success of all cases at each budget."""
    points = []
    for budget in scored[0].curve:
        estimate = _estimate(target, [(j.case, j.curve[budget]) for j in scored])
        points.append(CurvePoint(budget, estimate.mean, estimate.low, estimate.high))
    return points or None


def write_outcome(folder: Path, outcome: Outcome, scored: Sequence[ScoredCase]) -> None:
    """Write the images and tensors, and ``attack.json`` last: its presence marks a whole folder."""
    for case in scored:
        if case.file:
            write_atomically(folder / case.file, save(case.tensors))
    write_atomically(folder / "grid.png", png_bytes(attack_grid(outcome, scored)))
    if outcome.curve:
        write_atomically(folder / "curve.png", plot_curve(outcome))
    outcome.save(folder / OUTCOME_FILE)


def attack_grid(outcome: Outcome, scored: Sequence[ScoredCase]) -> Image:
    """Original, edited and attacked images side by side.

    They start from the same noise, unless the attack chose it. Of a curve the images at every
    budget, followed by those of the controls.
    """
    by_concept = sorted(scored, key=lambda j: outcome.concepts.index(j.case.concept.name))
    # A style has a control that other concepts lack.
    heads = [name for name in _columns(scored[0]) if all(name in _columns(c) for c in scored)]
    lines = [_grid_line(case, heads) for case in evenly_spaced(by_concept, _MAX_GRID_ROWS)]
    by = f" erased by {outcome.method}" if outcome.method else ""
    title = f"{outcome.attack} on {shortened_names(outcome.concepts)}{by}"
    protocol = outcome.protocol
    subtitle = (
        f"{protocol.steps} steps, guidance {protocol.guidance:g}; restored:"
        f" {outcome.success['attacked']}"
    )
    if outcome.axis:
        subtitle += f"; numbers are {outcome.axis}"
    return draw_grid(title, subtitle, heads, lines)


def _grid_line(scored: ScoredCase, heads: Sequence[str]) -> GridRow:
    case = scored.case
    text = f"{case.prompt} (seed {case.seed})" if scored.prompt is None else scored.prompt
    columns = _columns(scored)
    return GridRow(case.concept.name, text, [columns[name].first for name in heads])


def _columns(scored: ScoredCase) -> dict[str, ScoredImages]:
    """Images by column heading."""
    attacked = {f"{budget:g}": images for budget, images in scored.curve.items()}
    controls = {f"control: {name}": images for name, images in scored.controls.items()}
    return {
        "original": scored.kinds["original"],
        "edited": scored.kinds["plain"],
        **(attacked or {_ATTACKED_HEADING: scored.kinds["attacked"]}),
        **controls,
    }


def with_edit(outcome: Outcome, method: str, file: Path | None, paper: str) -> Outcome:
    """The outcome with the edit's method, the hash of its file, and the attack's paper."""
    edit = ""
    if file is not None:
        with file.open("rb") as content:
            edit = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    return replace(outcome, method=method, edit=edit, paper=paper)
