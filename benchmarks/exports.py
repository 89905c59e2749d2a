"""Exports, loaded by other tools' readers without this package: ``python benchmarks/exports.py``.

For the tiny model of each family and the three trained worlds: one closed form (UCE), one method on
full weights and one as a LoRA (ESD, a few steps), exported to every format, and one of gated
adapters (SPM). All are loaded and drawn from equal noise by ``stock.py``, a process of its own.
*edit*: mean absolute difference of the edited images, in 0..1, from the original's; the other
columns: of the images with the exported file from those of the edit. A LoRA of a full-rank change
is exported at the energy 0.999 and loses what its column shows.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rows import head, line
from stock import draw

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from original_layouts import original_tensors, write_original

from erasure_lightning import TrajectoryBank, erase, export_edit, find_world
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinyPixArt, TinySD3, TinyXL
from erasure_lightning.errors import ErasureError

MODELS: dict[str, Any] = {
    "TinyBackbone": lambda: TinyBackbone().to_pipeline(),
    "TinyXL": lambda: TinyXL().to_pipeline(),
    "TinySD3": lambda: TinySD3().to_pipeline(),
    "TinyFlux": lambda: TinyFlux().to_pipeline(),
    "TinyPixArt": lambda: TinyPixArt().to_pipeline(),
    "emoji-world": lambda: find_world("emoji-world").load_pipeline(),
    "emoji-world-xl": lambda: find_world("emoji-world-xl").load_pipeline(),
    "emoji-world-flux": lambda: find_world("emoji-world-flux").load_pipeline(),
}

#: Arguments of `erase` by title.
_FEW_STEPS = {"steps": 4, "lr": 1e-2, "warmup": 0}
EDITS: dict[str, dict[str, Any]] = {
    "UCE": {"method": "UCE"},
    "ESD": {"method": "ESD", **_FEW_STEPS, "lr": 1e-3},
    "ESD, rank 4": {"method": "ESD", **_FEW_STEPS, "rank": 4, "merge": False},
    "SPM": {"method": "SPM", **_FEW_STEPS, "anchors": 0},
}


class Column(NamedTuple):
    """A column of the table: an export format, and the reader of ``stock.py`` that loads it."""

    format: str
    reader: str


COLUMNS = {
    "diffusers": Column("diffusers", "diffusers"),
    "component": Column("component", "component"),
    "checkpoint": Column("checkpoint", "checkpoint"),
    "lora": Column("lora", "lora"),
    "kohya-lora": Column("kohya-lora", "lora"),
    "kohya-lora, ComfyUI's rule": Column("kohya-lora", "comfyui"),
    "diff, ComfyUI's rule": Column("diff", "comfyui"),
    "adapters": Column("adapters", "adapters"),
}

#: Why a column has no figure for a family.
UNREAD = {
    ("StableDiffusion3Pipeline", "kohya-lora"): "no reader",
    ("PixArtSigmaPipeline", "checkpoint"): "no layout",
}


def export(edit: Any, form: str, folder: Path) -> Any:
    """What `export_edit` returns, or why it refuses."""
    path = folder / (form if form in ("diffusers", "component") else f"{form}.safetensors")
    options = {"checkpoint": folder / "original.safetensors"} if form == "checkpoint" else {}
    try:
        return export_edit(edit, path, form, **options)
    except ErasureError:
        return "refused"


def drawn_elsewhere(
    folder: Path, prompt: str, jobs: Mapping[str, tuple[str, Path]]
) -> dict[str, np.ndarray | str]:
    """Images by column, drawn in a process without this package, or the error of the reader."""
    file = folder / "jobs" / "jobs.json"
    file.parent.mkdir()
    exports = [[reader, str(path)] for reader, path in jobs.values()]
    file.write_text(
        json.dumps({"base": str(folder / "base"), "prompt": prompt, "exports": exports})
    )
    script = str(Path(__file__).with_name("stock.py"))
    subprocess.run([sys.executable, "-I", "-W", "ignore", script, str(file)], check=True)
    results: dict[str, np.ndarray | str] = {}
    for number, title in enumerate(jobs):
        images = file.with_name(f"{number}.npy")
        error = file.with_name(f"{number}.txt")
        results[title] = np.load(images) if images.exists() else f"not read: {error.read_text()}"
    return results


def row(model: str, title: str, folder: Path) -> str:
    """A row: a model, a method, how far the edit moves, and every column."""
    pipeline = MODELS[model]()
    pipeline.set_progress_bar_config(disable=True)
    family = type(pipeline).__name__
    concept, anchor = ("cat", "dog") if model.startswith("Tiny") else ("guitar", "drum")
    pipeline.save_pretrained(folder / "base")
    if model != "TinyPixArt":  # whose family has no layout of its own
        write_original(original_tensors(pipeline), folder / "original.safetensors")
    prompt = f"a {concept}"
    arguments = dict(EDITS[title])
    if arguments["method"] != "UCE":
        arguments["latents"] = TrajectoryBank(trajectories=2, steps=8)
    edit = erase(pipeline, concept, anchor=anchor, progress_bar=False, **arguments)
    edited = draw(pipeline, prompt)
    formats = dict.fromkeys(column.format for column in COLUMNS.values())
    exports = {form: export(edit, form, folder) for form in formats}
    jobs = {"original": ("diffusers", folder / "base")}
    for name, (form, reader) in COLUMNS.items():
        if not isinstance(exports[form], str) and (family, name) not in UNREAD:
            jobs[name] = (reader, exports[form].path)
    images = drawn_elsewhere(folder, prompt, jobs)
    cells = [
        UNREAD.get((family, name)) or cell(exports[form], edited, images.get(name))
        for name, (form, _) in COLUMNS.items()
    ]
    return line([model, title, f"{np.abs(edited - images['original']).mean():.2g}", *cells])


def cell(exported: Any, edited: np.ndarray, images: np.ndarray | str | None) -> str:
    """The difference of an export's images from the edit's, or why there is none."""
    if isinstance(exported, str):
        return exported
    if isinstance(images, str):
        return images
    lost = f" ({exported.error:.1%} of the change)" if exported.error > 1e-3 else ""
    return f"{np.abs(images - edited).mean():.1g}{lost}"


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    print(head(["model", "method", "edit", *COLUMNS]))
    for model in options.models:
        for title in EDITS:
            with tempfile.TemporaryDirectory() as folder:
                print(row(model, title, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
