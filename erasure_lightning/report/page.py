"""HTML page of one or several runs, rendered by a template that escapes every value."""

import base64
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from erasure_lightning.files.words import shell_word
from erasure_lightning.report import charts, page_figures, page_model, reproduce, wording
from erasure_lightning.report.images import embed_images
from erasure_lightning.report.run_record import RunRecord
from erasure_lightning.runs.folder import slug

#: Start of the ``generator`` that marks pages of this package.
GENERATOR = "erasure report"

_TEMPLATE_FOLDER = Path(__file__).with_name("templates")

#: Templates in which every value is escaped; the card's template escapes for Markdown itself.
_ESCAPED_SUFFIXES = (".html",)

#: Labels and units of the fields of ``cost.json``.
COST_LABELS = {
    "seconds": ("Training time", "s"),
    "steps": ("Steps", ""),
    "trained_parameters": ("Trained parameters", ""),
    "evaluations": ("Evaluations of a denoiser", ""),
    "backwards": ("of them with gradient", ""),
    "peak_gib": ("Peak memory", "GiB"),
}


def template_environment() -> Environment:
    """The templates, with the functions that they call."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE_FOLDER),
        autoescape=lambda name: name is None or name.endswith(_ESCAPED_SUFFIXES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shell"] = shell_word
    environment.globals |= {
        "charts": charts,
        "wording": wording,
        "page_figures": page_figures,
        "page_model": page_model,
        "reproduce": reproduce,
        "split_links": split_links,
        "format_number": format_number,
    }
    return environment


def render_page(runs: Sequence[RunRecord]) -> str:
    """Render the report on one run, or on several side by side.

    Args:
        runs: At least one.
    """
    labelled = page_model.label_runs(runs)
    paths = [path for run in runs for pair in run.image_pairs for path in (pair.before, pair.after)]
    paths += [run.grid for run in runs if run.grid and not run.image_pairs]
    paths += [attack.grid for run in runs for attack in run.attacks if attack.grid]
    images, scaling = embed_images(paths)
    costs = {
        name: label for name, label in COST_LABELS.items() if any(name in run.cost for run in runs)
    }
    return (
        template_environment()
        .get_template("page.html")
        .render(
            title=page_title(runs),
            runs=labelled,
            comparisons=page_model.comparisons(labelled, images),
            images=images,
            scaling=scaling,
            seeds=sorted({pair.seed for run in runs for pair in run.image_pairs}),
            costs=costs,
            downloads={label: _config_link(run) for label, run in labelled.items()},
            generator=f"{GENERATOR} {version('erasure-lightning')}",
        )
    )


def page_title(runs: Sequence[RunRecord]) -> str:
    """``UCE erases cigarette``, ``3 edits that erase cigarette``."""
    concepts = {wording.concept_summary(run) for run in runs}
    if len(runs) == 1:
        return f"{runs[0].method or 'An unknown method'} erases {concepts.pop()}"
    if len(concepts) == 1:
        return f"{len(runs)} edits that erase {concepts.pop()}"
    return f"{len(runs)} edits side by side"


def _config_link(run: RunRecord) -> tuple[str, str]:
    """The config's file name, and a data URI that holds it."""
    content = quote(base64.b64encode(run.config.encode()).decode(), safe="")
    return f"{slug(run.name) or 'run'}.yaml", f"data:text/yaml;charset=utf-8;base64,{content}"


def split_links(text: str) -> list[tuple[str, str]]:
    """Pieces of a text, each with its address: itself for http and https addresses, else empty."""
    pieces = re.split(r"(https?://[^\s<>\"']+[^\s<>\"'.,;)])", text)
    return [(piece, piece if i % 2 else "") for i, piece in enumerate(pieces) if piece]


def format_number(value: float) -> str:
    """``1,234``, ``0.65``: two digits after the point unless the number is whole."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"
