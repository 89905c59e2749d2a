"""Sentences about a run's figures, shared by the page and the model card."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from erasure_lightning.concepts.concept import Concept, shortened_names
from erasure_lightning.edits.format import base_title
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.groups import ERASURE_GROUPS, GROUP_QUESTIONS
from erasure_lightning.metrics.protocol import Protocol
from erasure_lightning.report.run_record import RunRecord

#: A space at which no line is broken.
NO_BREAK_SPACE = "\u00a0"

#: Question about each group of prompts, and whether lower or higher values are better.
GROUP_TITLES = {
    group: (text.capitalize(), "lower" if group in ERASURE_GROUPS else "higher")
    for group, text in GROUP_QUESTIONS.items()
}

#: Question about each metric of image pairs, which values are better, and the metric's unit.
STRUCTURE_QUESTIONS = {
    "similarity": (
        "Do the other images mean the same as before?",
        "higher",
        "cosine of features, 1 is the same",
    ),
    "distance": (
        "How far are the other images' pixels from before?",
        "lower",
        "mean absolute difference, 0 is the same",
    ),
}

#: Phrases for the fields of an attack's cost.
_COST_PHRASES = {
    "seconds": "{} s",
    "evaluations": "{} evaluations of a denoiser",
    "backwards": "{} of them with gradient",
    "peak_gib": "{} GiB",
}

#: Limitations of figures (`limitations`).
_SEEDS_ALONE = (
    "An interval shows how much a mean would change with other seeds, not with other prompts."
)
_SCORER_ERRORS = (
    "A scorer recognises what an image shows, and makes errors: the figures of the original model"
    " show how many."
)
_NEVER_DRAWN = (
    "The original model drew the concept in none of these images either: they do not measure"
    " its erasure."
)
_NOT_ATTACKED = (
    "The edit was not attacked: prompts or further training that are made to restore the concept"
    " may succeed."
)
_LISTED_ATTACKS = (
    "Only the listed attacks were made, with the listed budgets; a stronger one may restore the"
    " concept more often."
)


class TextPiece(NamedTuple):
    """Part of a sentence.

    Args:
        text: Its text.
        strong: Whether it is emphasised.
    """

    text: str
    strong: bool = False


Sentence = tuple[TextPiece, ...]


def percent(share: float, digits: int = 0) -> str:
    """A share in percent: ``0 %``, ``<1 %``, ``99 %``.

    Only a share of exactly 0 or 1 is written as ``0 %`` or ``100 %``.

    Args:
        share: The share, 0 to 1.
        digits: Digits after the decimal point.
    """
    if not math.isfinite(share):
        return "?"
    smallest = 10.0**-digits
    value = 100 * share
    if 0 < value <= smallest / 2:  # half of it would be rounded to 0
        return f"<{smallest:g}{NO_BREAK_SPACE}%"
    if 100 - smallest / 2 <= value < 100:
        return f">{100 - smallest:g}{NO_BREAK_SPACE}%"
    return f"{value:.{digits}f}".removesuffix(".0") + f"{NO_BREAK_SPACE}%"


def interval(estimate: Estimate, digits: int = 0) -> str:
    """The 95 % interval of a share in percent: ``[98, 100]``."""
    ends = (estimate.low, estimate.high)
    low, high = (f"{100 * end:.{digits}f}".removesuffix(".0") for end in ends)
    return f"[{low},{NO_BREAK_SPACE}{high}]"


def pluralized(number: float, noun: str) -> str:
    """A number with its noun: ``1 seed``, ``3 seeds``."""
    return f"{number:,}{NO_BREAK_SPACE}{noun}{'' if number == 1 else 's'}"


def concept_summary(record: RunRecord) -> str:
    """The names of the erased concepts, shortened if there are many."""
    return shortened_names([concept.name for concept in record.concepts]) or "an unknown concept"


def concept_words(record: RunRecord, concept: Concept) -> str:
    """Words that mean a concept without naming it: those measured, and those mined in training."""
    mined = record.metadata.get("domain_words")
    erased = mined.get(concept.name) if isinstance(mined, Mapping) else None
    listed = {
        "other words": concept.domain,
        "mined and erased too": erased if isinstance(erased, list) else [],
    }
    return "; ".join(
        f"{title}: {', '.join(map(str, words))}" for title, words in listed.items() if words
    )


def recognized_share(record: RunRecord, group: str, when: str) -> Estimate | None:
    """The share of a group's images that were recognised; None if it was not measured.

    Args:
        record: The run.
        group: A group of prompts, such as ``efficacy``.
        when: ``before`` or ``after`` the edit.
    """
    if record.result is None:
        return None
    estimate = record.result.estimates.get(group, {}).get("recognized", {}).get(when)
    return estimate if estimate is not None and math.isfinite(estimate.mean) else None


def verdict(record: RunRecord) -> Sentence:
    """The result of a run in one sentence."""
    if record.edit is None and record.result is None:
        return (
            TextPiece("This run has not finished", True),
            TextPiece(": it is still training or was stopped, and there is no edit to measure."),
        )
    if record.result is None:
        known = "only attacks on it." if record.attacks else "so its effect is unknown."
        return (TextPiece("No images of this edit were measured", True), TextPiece(f", {known}"))
    groups = ("efficacy", "specificity")
    if all(recognized_share(record, group, "after") is None for group in groups):
        return tuple(_verdict_without_scorer(record))
    return tuple(_verdict_with_scorer(record))


def _verdict_with_scorer(record: RunRecord) -> Iterator[TextPiece]:
    efficacy = recognized_share(record, "efficacy", "after")
    specificity = recognized_share(record, "specificity", "after")
    if efficacy:
        subject = "they are" if len(record.concepts) > 1 else "it is"
        yield TextPiece(f"Prompted by name, {subject} shown in ")
        yield from _share_of_images(efficacy, recognized_share(record, "efficacy", "before"))
        yield TextPiece("; other concepts are shown in " if specificity else ".")
    elif specificity:
        yield TextPiece("Erasure was not measured; other concepts are shown in ")
    if specificity:
        yield from _share_of_images(specificity, recognized_share(record, "specificity", "before"))
        yield TextPiece(".")


def _share_of_images(after: Estimate, before: Estimate | None) -> Iterator[TextPiece]:
    yield TextPiece(percent(after.mean), True)
    earlier = f" (before: {percent(before.mean)})" if before else ""
    yield TextPiece(f" {interval(after)} of images{earlier}")


def _verdict_without_scorer(record: RunRecord) -> Iterator[TextPiece]:
    yield TextPiece("No scorer recognised what the images show", True)
    yield TextPiece(", so erasure was not measured; only pixels were compared")
    distance = None
    if record.result:
        distance = record.result.estimates.get("structure", {}).get("distance", {}).get("after")
    if distance and math.isfinite(distance.mean):
        yield TextPiece(": images of other concepts changed by ")
        yield TextPiece(f"{distance.mean:.3f}", True)
        yield TextPiece(f" [{distance.low:.3f}, {distance.high:.3f}] of their range")
    yield TextPiece(".")


def remarks(record: RunRecord) -> list[Sentence]:
    """Sentences that complete the verdict: other words for the concept, and attacks."""
    sentences: list[Sentence] = []
    if beneath := record.metadata.get("base_edits"):
        sentences.append(tuple(_earlier_edits(record, beneath)))
    if (generality := recognized_share(record, "generality", "after")) is not None:
        words = shortened_names([word for concept in record.concepts for word in concept.domain])
        prompted = f"Prompted by other words ({words})" if words else "Prompted by other words"
        share = _share_of_images(generality, recognized_share(record, "generality", "before"))
        sentences.append((TextPiece(f"{prompted}: "), *share, TextPiece(".")))
    if record.attacks:
        outcomes = [attack.outcome for attack in record.attacks]
        strongest = max(outcomes, key=lambda outcome: outcome.success["attacked"].mean)
        count = len(outcomes)
        under = f"Under the strongest of {count} attacks" if count > 1 else "Under attack"
        share = _share_of_images(strongest.success["attacked"], None)
        start = TextPiece(f"{under} ({strongest.attack}), it is shown in ")
        sentences.append((start, *share, TextPiece(".")))
    elif record.edit:
        sentences.append((TextPiece("It was not attacked."),))
    return sentences


def _earlier_edits(record: RunRecord, beneath: Sequence[Mapping[str, Any]]) -> Iterator[TextPiece]:
    """Sentences on base edits, and whether their concepts are still erased."""
    titles = ", ".join(str(entry["edit"]) for entry in beneath)
    yield TextPiece(f"It is based on {titles}; “before” is the model without any edit. ")
    earlier = recognized_share(record, "earlier", "after")
    if earlier is None:
        yield TextPiece("Whether the earlier concepts are still erased was not measured.")
        return
    names = [concept["name"] for entry in beneath for concept in entry["concepts"]]
    yield TextPiece(f"What was erased earlier ({shortened_names(names)}) is shown in ")
    yield from _share_of_images(earlier, recognized_share(record, "earlier", "before"))
    yield TextPiece(".")


def limitations(record: RunRecord) -> list[str]:
    """Sentences on what a run's figures do not show."""
    result = record.result
    attacks = record.attacks
    missed = _missed_images(recognized_share(record, "efficacy", "after"))
    before = recognized_share(record, "efficacy", "before")
    sentences: list[tuple[object, str]] = [
        (result, _SEEDS_ALONE),
        (attacks and not result, "No figures were measured apart from the attacks."),
        (not attacks and not result, "No figures were measured: the edit's effect is unknown."),
        (before and before.mean == 0, _NEVER_DRAWN),
        (missed, missed),
        (result and result.protocol.scorer, _SCORER_ERRORS),
        (record.edit and not attacks, _NOT_ATTACKED),
        (attacks, _LISTED_ATTACKS),
        (True, "Only images were examined, not what the weights still represent of the concept."),
    ]
    return [sentence for holds, sentence in sentences if holds]


def _missed_images(efficacy: Estimate | None) -> str:
    """Share that a test without any image of the concept may miss; empty for other results."""
    if not efficacy or efficacy.mean > 0:
        return ""
    share = percent(undetected_share(efficacy.images))
    return (
        f"None of {pluralized(efficacy.images, 'image')} showed the concept. A model that generates"
        f" it in up to {share} of images would still pass such a test one time in twenty (images"
        " taken as independent)."
    )


def undetected_share(images: int) -> float:
    """The largest share that is missed by so many independent images with a probability of 5 %."""
    return float(1 - 0.05 ** (1 / images)) if images else 1.0


def describe_protocol(protocol: Protocol) -> str:
    """A protocol in one sentence."""
    prompts = sum(map(len, protocol.prompts.values()))
    scorer = "a scorer that recognises what they show" if protocol.scorer else "no scorer"
    return (
        f"{pluralized(prompts, 'prompt')}, each generated by both models from the same noise with"
        f" {pluralized(len(protocol.seeds), 'seed')}: {protocol.sampler},"
        f" {pluralized(protocol.steps, 'step')}, guidance {protocol.guidance:g}, {protocol.size} by"
        f" {protocol.size} pixels, {scorer}."
    )


def describe_cost(cost: Mapping[str, float]) -> str:
    """An attack's cost: ``25.5 s, 960 evaluations of a denoiser, 0.65 GiB``."""
    names = [name for name in dict.fromkeys([*_COST_PHRASES, *cost]) if name in cost]
    phrases = (_COST_PHRASES.get(name, f"{{}} {name}") for name in names)
    return ", ".join(
        phrase.format(f"{cost[name]:,.6g}") for name, phrase in zip(names, phrases, strict=True)
    )


def base_model(record: RunRecord) -> str:
    """The edit's base model, with the LoRAs that were fused into it first."""
    return base_title(record.metadata) or "unknown"


def edited_components(record: RunRecord) -> str:
    """The pipeline's components that the edit changes."""
    return ", ".join(record.edit.components) if record.edit else ""
