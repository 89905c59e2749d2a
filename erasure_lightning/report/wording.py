"""What the figures say, in sentences that a page and a model card share."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from erasure_lightning.concepts.concept import shortened_names
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.groups import ERASURE_GROUPS, GROUP_QUESTIONS
from erasure_lightning.metrics.protocol import Protocol
from erasure_lightning.report.run_record import Facts

#: A space that no line breaks at.
HARD = "\u00a0"

#: Of each group: what is asked, and whether little or much of it is good.
ASKED = {
    group: (text.capitalize(), "lower" if group in ERASURE_GROUPS else "higher")
    for group, text in GROUP_QUESTIONS.items()
}

#: The same of pairs of pictures of everything else, with the unit.
COMPARED = {
    "similarity": (
        "Do the other pictures mean the same as before?",
        "higher",
        "cosine of features, 1 is the same",
    ),
    "distance": (
        "How far are the other pictures' pixels from before?",
        "lower",
        "mean absolute difference, 0 is the same",
    ),
}

#: Of the cost of an attack, each in words.
SPENT = {
    "seconds": "{} s",
    "evaluations": "{} evaluations of a denoiser",
    "backwards": "{} of them with gradient",
    "peak_gib": "{} GiB",
}


class Words(NamedTuple):
    """A piece of a sentence, and whether it is what the sentence is about."""

    text: str
    strong: bool = False


Sentence = tuple[Words, ...]


def percent(share: float, digits: int = 0) -> str:
    """``0 %``, ``<1 %``, ``99 %``: a share never looks like none, or all, unless it is."""
    if not math.isfinite(share):
        return "?"
    least = 10.0**-digits
    value = 100 * share
    if 0 < value < least / 2:
        return f"<{least:g}{HARD}%"
    if 100 - least / 2 <= value < 100:
        return f">{100 - least:g}{HARD}%"
    return f"{value:.{digits}f}".removesuffix(".0") + f"{HARD}%"


def interval(estimate: Estimate, digits: int = 0) -> str:
    """The 95 % interval of a share, ``[98, 100]`` in percent."""
    low, high = (
        f"{100 * end:.{digits}f}".removesuffix(".0") for end in (estimate.low, estimate.high)
    )
    return f"[{low},{HARD}{high}]"


def counted(number: float, thing: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number:,}{HARD}{thing}{'' if number == 1 else 's'}"


def named(facts: Facts) -> str:
    """What was erased, in short."""
    return shortened_names([c.name for c in facts.concepts]) or "an unknown concept"


def share(facts: Facts, group: str, when: str) -> Estimate | None:
    """How much of a group was recognised, if that was measured."""
    found = (
        facts.result.estimates.get(group, {}).get("recognized", {}).get(when)
        if facts.result
        else None
    )
    return found if found is not None and math.isfinite(found.mean) else None


def verdict(facts: Facts) -> Sentence:
    """The one sentence that a hurried reader reads."""
    if facts.edit is None and facts.result is None:
        return (
            Words("This run has not finished", True),
            Words(": it is still training or was stopped, and there is no edit to judge."),
        )
    if facts.result is None:
        known = (
            "but the attacks on it." if facts.attacks else "so nothing is known of what it does."
        )
        return (Words("Nothing was measured", True), Words(f" of this edit, {known}"))
    if share(facts, "efficacy", "after") is None and share(facts, "specificity", "after") is None:
        return tuple(_blind(facts))
    return tuple(_judged(facts))


def _judged(facts: Facts) -> Iterator[Words]:
    gone, kept = (share(facts, group, "after") for group in ("efficacy", "specificity"))
    if gone:
        what = "they are" if len(facts.concepts) > 1 else "it is"
        yield Words(f"Asked for by name, {what} drawn in ")
        yield from _figure(gone, share(facts, "efficacy", "before"))
        yield Words("; other things stay: " if kept else ".")
    elif kept:
        yield Words("Whether it is gone was not measured; other things stay: ")
    if kept:
        yield from _figure(kept, share(facts, "specificity", "before"))
        yield Words(".")


def _figure(after: Estimate, before: Estimate | None) -> Iterator[Words]:
    yield Words(percent(after.mean), True)
    earlier = f" (before: {percent(before.mean)})" if before else ""
    yield Words(f" {interval(after)} of pictures{earlier}")


def _blind(facts: Facts) -> Iterator[Words]:
    yield Words("No scorer was there to recognise things", True)
    yield Words(", so whether the concept is gone is not known; only pixels were compared")
    distance = (
        facts.result.estimates.get("structure", {}).get("distance", {}).get("after")
        if facts.result
        else None
    )
    if distance and math.isfinite(distance.mean):
        yield Words(": pictures of other things moved by ")
        yield Words(f"{distance.mean:.3f}", True)
        yield Words(f" [{distance.low:.3f}, {distance.high:.3f}] of their range")
    yield Words(".")


def asides(facts: Facts) -> list[Sentence]:
    """What belongs to the verdict: other words for the concept, attacks, and that there were none."""
    found = []
    if (other := share(facts, "generality", "after")) is not None:
        words = shortened_names([word for concept in facts.concepts for word in concept.domain])
        figure = _figure(other, share(facts, "generality", "before"))
        called = f"Called by other words ({words}): " if words else "Called by other words: "
        found.append((Words(called), *figure, Words(".")))
    if facts.attacks:
        worst = max(
            (attempt.outcome for attempt in facts.attacks), key=lambda o: o.success["attacked"].mean
        )
        came = worst.success["attacked"]
        which = (
            f"Under the strongest of {len(facts.attacks)} attacks"
            if len(facts.attacks) > 1
            else "Under attack"
        )
        found.append((
            Words(f"{which} ({worst.attack}), it comes back in "), Words(percent(came.mean), True),
            Words(f" {interval(came)} of pictures."),
        ))  # fmt: skip
    elif facts.edit:
        found.append((Words("No attack was tried on it."),))
    return found


def limits(facts: Facts) -> list[str]:
    """What the figures do not say, in plain words."""
    told = []
    if facts.result:
        told.append(
            "An interval says how much a mean would move with other seeds. It says nothing of other"
            " prompts than those that were asked."
        )
    else:
        beside = "Beside the attacks, nothing" if facts.attacks else "Nothing"
        told.append(f"{beside} was measured: whatever else is said of this edit is a guess.")
    gone = share(facts, "efficacy", "after")
    if gone and gone.mean == 0:
        told.append(
            f"None of {counted(gone.pictures, 'picture')} showed the concept. A model that draws it"
            f" in up to {percent(unseen(gone.pictures))} of pictures would still pass such a test"
            " one time in twenty (pictures taken as independent)."
        )
    if facts.result and facts.result.protocol.scorer:
        told.append(
            "What a picture shows is told by a scorer, which errs: the figures of the original"
            " model tell how often."
        )
    if facts.edit and not facts.attacks:
        told.append(
            "No attack was tried: prompts or further training that are made to bring the concept"
            " back may succeed."
        )
    elif facts.attacks:
        told.append(
            "The attacks are those listed, with the budgets listed; a stronger one may bring back"
            " more."
        )
    told.append(
        "Pictures are all that was looked at. What the weights still know of the concept is another"
        " question."
    )
    return told


def unseen(pictures: int) -> float:
    """The largest share that shows up in none of so many independent pictures with a chance of 5 %."""
    return float(1 - 0.05 ** (1 / pictures)) if pictures else 1.0


def how_measured(protocol: Protocol) -> str:
    """A protocol in a sentence."""
    prompts = sum(map(len, protocol.prompts.values()))
    scorer = "a scorer that tells what they show" if protocol.scorer else "no scorer"
    return (
        f"{counted(prompts, 'prompt')}, each drawn by both models from the same noise with"
        f" {counted(len(protocol.seeds), 'seed')}: {protocol.sampler},"
        f" {counted(protocol.steps, 'step')}, guidance {protocol.guidance:g}, {protocol.size} by"
        f" {protocol.size} pixels, {scorer}."
    )


def spent(cost: Mapping[str, float]) -> str:
    """What an attack cost: ``25.5 s, 960 evaluations of a denoiser, 320 of them with gradient, 0.65
    GiB``.
    """
    known = {name: SPENT.get(name, f"{{}} {name}") for name in [*SPENT, *cost] if name in cost}
    return ", ".join(text.format(f"{cost[name]:,.6g}") for name, text in known.items())


def parts(facts: Facts) -> str:
    """What of a pipeline the edit changes."""
    return ", ".join(facts.edit.components) if facts.edit else ""
