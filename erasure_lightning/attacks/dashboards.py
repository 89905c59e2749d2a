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


def show_attacks(board: DashboardWriter, outcomes: Sequence[Outcome]) -> None:
    """Show what attacks brought back: tables ``attacks`` and ``found``, ``attacked_NAME`` with its
    interval, curves.
    """
    columns = [
        "attack",
        "method",
        "concepts",
        *(f"{asked} {end}" for asked in ASKED for end in INTERVAL_COLUMNS),
        "seconds",
    ]
    board.log_table("attacks", columns, [_row(outcome) for outcome in outcomes])
    found = [
        [o.attack, f.concept, f.seed, f.success, f.prompt or ""] for o in outcomes for f in o.found
    ]
    board.log_table("found", ["attack", "concept", "seed", "success", "prompt"], found)
    for outcome in outcomes:
        name = slug(outcome.attack)
        board.log_summary(
            {
                f"attacked_{name}{end}": v
                for end, v in interval_figures(outcome.success["attacked"]).items()
            }
        )
        if outcome.curve:
            board.log_curve(
                f"curve/{name}",
                [(point.budget, point.success) for point in outcome.curve],
                "budget",
            )


def _row(outcome: Outcome) -> list[str | float | None]:
    return [
        outcome.attack,
        outcome.method,
        ", ".join(outcome.concepts),
        *(value for kind in IMAGE_KINDS for value in interval_cells(outcome.success[kind])),
        outcome.cost["seconds"],
    ]
