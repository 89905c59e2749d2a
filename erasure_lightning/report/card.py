"""The model card: the page's facts in Markdown, with the front matter that the Hugging Face Hub
reads.
"""

import re
from typing import Any

import yaml

from erasure_lightning.report import wording
from erasure_lightning.report.page import COSTS, environment, title
from erasure_lightning.report.run_record import Facts

#: A repository on the Hub: ``owner/name``.
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

#: What Markdown would take for its own within a line; no line of the template begins with a user's
#: words.
_SPECIAL = re.compile(r"([\\`*_\[\]#|~$])")


def card(facts: Facts) -> str:
    """A run's model card."""
    made = environment()
    made.filters["md"] = escaped
    made.filters["sentence"] = _sentence
    made.filters["code"] = fenced
    return made.get_template("card.md").render(
        front=front_matter(facts),
        title=title([facts]),
        run=facts,
        costs={name: text for name, text in COSTS.items() if name in facts.cost},
    )


def front_matter(facts: Facts) -> str:
    """What the Hub reads. No licence: whoever publishes an edit chooses one that the base model's
    allows.
    """
    base = str(facts.about.get("backbone", ""))
    named = {"base_model": base} if _HUB_ID.fullmatch(base) else {}
    tags = [
        "concept-erasure",
        "erasure-lightning",
        *([facts.method.lower()] if facts.method else []),
    ]
    content: dict[str, Any] = {
        **named,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": tags,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip()


def escaped(value: Any) -> str:
    """Text on one line that Markdown shows as it is."""
    text = (
        " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
    return _SPECIAL.sub(r"\\\1", text)


def fenced(text: str, language: str = "") -> str:
    """A block of code; its fence is longer than any within."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _sentence(pieces: wording.Sentence) -> str:
    return "".join(
        f"**{escaped(piece.text)}**" if piece.strong else _spaced(piece.text) for piece in pieces
    )


def _spaced(text: str) -> str:
    """Escaped, with the spaces at its ends, which `escaped` takes away."""
    return f"{' ' * text.startswith(' ')}{escaped(text)}{' ' * text.endswith(' ')}"
