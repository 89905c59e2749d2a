"""Model card: a run's record in Markdown, with front matter for the Hugging Face Hub."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from erasure_lightning.backbones.sources import is_hub_id
from erasure_lightning.report import wording
from erasure_lightning.report.page import COST_LABELS, page_title, template_environment
from erasure_lightning.report.run_record import RunRecord

#: Characters with a meaning of their own within a line of Markdown. Those with a meaning only at a
#: line's beginning are harmless: no line of the template begins with a user's text.
_SPECIAL_CHARACTERS = re.compile(r"([\\`*_\[\]#|~$])")


class HubContent(NamedTuple):
    """Files of a repository on the Hub beside the edit, as its card names them.

    Args:
        repository: The repository, ``owner/name``.
        exports: File, or ``.`` for the whole repository, of each format that was exported.
        gallery: Prompt, seed, file of the original's image and of the edited model's.
    """

    repository: str
    exports: dict[str, str]
    gallery: list[tuple[str, int, str, str]]


#: How an exported file is used, by format: with code, or in words.
_USES = {
    "diffusers": "the whole edited pipeline:"
    " `DiffusionPipeline.from_pretrained({repository!r})` of diffusers",
    "lora": "a LoRA: `pipeline.load_lora_weights({repository!r}, weight_name={file!r})` of"
    " diffusers",
    "kohya-lora": "a LoRA with Kohya's keys, for ComfyUI and A1111",
    "diff": "the exact differences of the weights, for ComfyUI's LoRA loader",
    "checkpoint": "a single file of the whole edited model",
    "component": "the edited component alone",
}


def render_card(record: RunRecord, hub: HubContent | None = None) -> str:
    """Render a run's model card.

    Args:
        record: The run.
        hub: The repository that the card is written for; None for a card of the edit alone.
    """
    environment = template_environment()
    environment.filters["md"] = escape_markdown
    environment.filters["sentence"] = _sentence
    environment.filters["code"] = code_block
    return environment.get_template("card.md").render(
        front=front_matter(record),
        hub=hub,
        uses=_uses(hub) if hub else [],
        title=page_title([record]),
        run=record,
        costs={name: label for name, label in COST_LABELS.items() if name in record.cost},
    )


def front_matter(record: RunRecord) -> str:
    """Metadata for the Hub as YAML.

    It names no license, which the publisher of an edit chooses within the base model's terms.
    """
    content: dict[str, Any] = {}
    base_model = str(record.metadata.get("backbone", "")).partition("@")[0]  # without a revision
    is_local = base_model.endswith(".safetensors") or Path(base_model).exists()
    if is_hub_id(base_model) and not is_local:
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


def _uses(hub: HubContent) -> list[str]:
    """A line on each exported file."""
    lines = []
    for name, file in hub.exports.items():
        use = _USES.get(name, f"the edit as {name}").format(repository=hub.repository, file=file)
        lines.append(use if file == "." else f"`{file}`: {use}")
    return lines


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
