"""The page: facts and pictures put into a template that escapes whatever it is given."""

import base64
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from erasure_lightning.report import charts, page_model, reproduce, wording
from erasure_lightning.report.pictures import embed
from erasure_lightning.report.run_record import Facts
from erasure_lightning.runs.folder import slug

#: How a page of ours is known again.
GENERATOR = "erasure report"

TEMPLATES = Path(__file__).with_name("templates")

#: Templates in which every value is escaped; a card is Markdown, and escapes in its own way.
ESCAPED = (".html",)

#: Lines of ``cost.json``: what they are, and their unit.
COSTS = {
    "seconds": ("Training time", "s"),
    "steps": ("Steps", ""),
    "trained_parameters": ("Trained parameters", ""),
    "evaluations": ("Evaluations of a denoiser", ""),
    "backwards": ("of them with gradient", ""),
    "peak_gib": ("Peak memory", "GiB"),
}


def environment() -> Environment:
    """Where templates are found, and what they may use."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is None or name.endswith(ESCAPED),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "charts": charts,
        "words": wording,
        "views": page_model,
        "reproduce": reproduce,
        "linked": linked,
        "number": number,
    }
    return made


def page(runs: Sequence[Facts]) -> str:
    """The report on one run, or on several side by side.

    Args:
        runs: At least one.
    """
    labels = page_model.labelled(runs)
    shown = [path for f in runs for s in f.samples for path in (s.before, s.after)]
    shown += [f.grid for f in runs if f.grid and not f.samples]
    shown += [attempt.grid for f in runs for attempt in f.attacks if attempt.grid]
    pictures, told = embed(shown)
    template = environment().get_template("page.html")
    return template.render(
        title=title(runs),
        runs=labels,
        comparisons=page_model.comparisons(labels, pictures),
        pictures=pictures,
        pictures_told=told,
        seeds=sorted({sample.seed for facts in runs for sample in facts.samples}),
        costs={name: text for name, text in COSTS.items() if any(name in f.cost for f in runs)},
        downloads={label: _download(f) for label, f in labels.items()},
        generator=f"{GENERATOR} {version('erasure-lightning')}",
    )


def title(runs: Sequence[Facts]) -> str:
    """``UCE erases cigarette``, ``3 edits that erase cigarette``."""
    names = {wording.named(facts) for facts in runs}
    if len(runs) == 1:
        return f"{runs[0].method or 'An unknown method'} erases {wording.named(runs[0])}"
    return (
        f"{len(runs)} edits that erase {names.pop()}"
        if len(names) == 1
        else f"{len(runs)} edits side by side"
    )


def _download(facts: Facts) -> tuple[str, str]:
    """The config as a link: the name of its file, and an address that holds it."""
    content = base64.b64encode(facts.config.encode()).decode()
    return (
        f"{slug(facts.name) or 'run'}.yaml",
        f"data:text/yaml;charset=utf-8;base64,{quote(content, safe='')}",
    )


def linked(text: str) -> list[tuple[str, str]]:
    """A text in pieces, each with the address it leads to; nothing but http and https becomes one."""
    pieces = re.split(r"(https?://[^\s<>\"']+[^\s<>\"'.,;)])", text)
    return [(piece, piece if i % 2 else "") for i, piece in enumerate(pieces) if piece]


def number(value: float) -> str:
    """``1,234``, ``0.65``: whole where it is."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"
