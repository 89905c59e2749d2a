"""Sentences about the work of a planned fit."""

from collections.abc import Iterator

from erasure_lightning.planning.evaluation_counters import STUDENT_CALLS, TEACHER_CALLS
from erasure_lightning.planning.forecast import FitForecast


def work_sentences(forecast: FitForecast, devices: int) -> list[str]:
    """Sentences about parameters, evaluations and images.

    Args:
        forecast: The forecast, of one device.
        devices: How many.
    """
    held = forecast.held
    parts = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in held.parameters.items())
    each, together = (" on each device", ", on all devices together") if devices > 1 else ("", "")
    kinds = [count for name, count in forecast.evaluations.items() if name != "first"]
    steps = [count[STUDENT_CALLS] + count[TEACHER_CALLS] for count in kinds]
    whole = forecast.steps * sum(steps) // len(steps)
    whole += forecast.sampled + forecast.monitored + forecast.prepared
    drawn = (
        f" The measurement generates 2 x {forecast.images} images in {forecast.measured}"
        f" evaluations{together}."
    )
    return [
        f"Parameters: {parts}.",
        *(_training(forecast) if held.trained else ["Trained: none; the edit is solved for."]),
        f"In all about {whole} evaluations{each}.{drawn if forecast.images else ''}",
    ]


def _training(forecast: FitForecast) -> Iterator[str]:
    held = forecast.held
    inside = sorted({".".join(name.split(".")[:2]) for name in held.names})
    shown = ", ".join(inside[:4]) + (", ..." if len(inside) > 4 else "")
    share = held.trained / sum(held.parameters.values())
    yield (
        f"Trained: {held.trained / 1e6:.3f} M ({share:.2%}) in {len(held.names)} tensors of"
        f" {shown}."
    )
    yield from _steps(forecast)
    if forecast.search:
        yield (
            f"Besides, the search for each word takes {forecast.search} forwards and backwards,"
            " and its rollouts."
        )
    if forecast.prepared:
        yield (
            "Saliency maps or textual inversion before the first step take"
            f" {forecast.prepared} evaluations."
        )
    if forecast.sampled:
        yield f"Trajectories or images to train on cost {forecast.sampled} evaluations."
    if forecast.monitored:
        yield f"RetentionMonitor generates its images in {forecast.monitored} evaluations."


def _steps(forecast: FitForecast) -> Iterator[str]:
    """Sentences about the evaluations in a step."""
    first = forecast.evaluations["first"]
    last = forecast.evaluations["last"]
    other = forecast.evaluations.get("other")
    if other:
        yield (
            f"Half of {forecast.steps} steps evaluate the student on {last[STUDENT_CALLS]} latents"
            f" and the original on {last[TEACHER_CALLS]} ({last['backwards']} backwards), half on"
            f" {other[STUDENT_CALLS]} and {other[TEACHER_CALLS]} ({other['backwards']} backwards)."
        )
    else:
        yield (
            f"Each of {forecast.steps} steps evaluates the student on {last[STUDENT_CALLS]} latents"
            f" and the original on {last[TEACHER_CALLS]}; {last['backwards']} backwards."
        )
    if first not in (last, other):
        yield (
            f"(The first step: {first[STUDENT_CALLS]} and {first[TEACHER_CALLS]};"
            f" {first['backwards']} backwards.)"
        )
