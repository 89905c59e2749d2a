"""Dashboard content of attacks: success with intervals, results by case, and curves."""

from collections.abc import Sequence

from erasure_lightning.attacks.outcome import IMAGE_KINDS, Outcome
from erasure_lightning.runs.dashboard_content import (
    INTERVAL_COLUMNS,
    interval_cells,
    interval_figures,
)
from erasure_lightning.runs.dashboards import DashboardWriter
from erasure_lightning.runs.folder import slug


def show_attacks(writer: DashboardWriter, outcomes: Sequence[Outcome]) -> None:
    """Log tables ``attacks``, ``found`` and ``controls``, ``attacked_NAME``, and curves."""
    shares = [f"{kind} {end}" for kind in IMAGE_KINDS for end in INTERVAL_COLUMNS]
    columns = ["attack", "method", "concepts", *shares, "seconds"]
    writer.log_table("attacks", columns, [_row(outcome) for outcome in outcomes])
    cases = [
        [o.attack, case.concept, case.seed, case.success, case.prompt or ""]
        for o in outcomes
        for case in o.cases
    ]
    writer.log_table("found", ["attack", "concept", "seed", "success", "prompt"], cases)
    controls = [
        [o.attack, o.method, name, *interval_cells(estimate)]
        for o in outcomes
        for name, estimate in o.controls.items()
    ]
    if controls:
        writer.log_table("controls", ["attack", "method", "control", *INTERVAL_COLUMNS], controls)
    for outcome in outcomes:
        name = slug(outcome.attack)
        attacked = interval_figures(outcome.success["attacked"])
        writer.log_summary({f"attacked_{name}{end}": value for end, value in attacked.items()})
        if outcome.curve:
            points = [(point.budget, point.success) for point in outcome.curve]
            writer.log_curve(f"curve/{name}", points, "budget")


def _row(outcome: Outcome) -> list[str | float | None]:
    return [
        outcome.attack,
        outcome.method,
        ", ".join(outcome.concepts),
        *(value for kind in IMAGE_KINDS for value in interval_cells(outcome.success[kind])),
        outcome.cost["seconds"],
    ]
