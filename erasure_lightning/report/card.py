"""Model card: a run's record in Markdown, with front matter for the Hugging Face Hub."""

import re
from typing import Any

import yaml

from erasure_lightning.report import wording
from erasure_lightning.report.page import COST_LABELS, page_title, template_environment
from erasure_lightning.report.run_record import RunRecord

#: A repository on the Hub: ``owner/name``.
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

#: Characters with a meaning of their own within a line of Markdown. Those with a meaning only at a
#: line's beginning are harmless: no line of the template begins with a user's text.
_SPECIAL_CHARACTERS = re.compile(r"([\\`*_\[\]#|~$])")


def render_card(record: RunRecord) -> str:
    """Render a run's model card."""
    environment = template_environment()
    environment.filters["md"] = escape_markdown
    environment.filters["sentence"] = _sentence
    environment.filters["code"] = code_block
    return environment.get_template("card.md").render(
        front=front_matter(record),
        title=page_title([record]),
        run=record,
        costs={name: label for name, label in COST_LABELS.items() if name in record.cost},
    )


def front_matter(record: RunRecord) -> str:
    """Metadata for the Hub as YAML.

    It names no license: who publishes an edit chooses one that the base model's allows.
    """
    content: dict[str, Any] = {}
    base_model = str(record.metadata.get("backbone", ""))
    if _HUB_ID.fullmatch(base_model):
        content["base_model"] = base_model
    content["library_name"] = "diffusers"
    content["pipeline_tag"] = "text-to-image"
    content["tags"] = ["concept-erasure", "erasure-lightning"]
    if record.method:
        content["tags"].append(record.method.lower())
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip()


def escape_markdown(value: Any) -> str:
    """Text on one line that Markdown shows character by character."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL_CHARACTERS.sub(r"\\\1", text)


def code_block(text: str, language: str = "") -> str:
    """A fenced block of code, its fence longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _sentence(pieces: wording.Sentence) -> str:
    texts = []
    for piece in pieces:
        text = escape_markdown(piece.text)
        if piece.strong:
            texts.append(f"**{text}**")
        else:
            start = " " * piece.text.startswith(" ")  # escaping removes spaces at both ends
            end = " " * piece.text.endswith(" ")
            texts.append(f"{start}{text}{end}")
    return "".join(texts)
