"""Exports, loaded by stock tools in a process without ours: ``python benchmarks/exports.py``.

For the tiny model of each family and the three trained worlds: one closed form (UCE), one method on
full weights and one as a LoRA (ESD, a few steps), exported to every format that a stock reader of
diffusers loads, drawn there from equal noise. *edit*: mean absolute difference of the edited
images, in 0..1, from the original's; the other columns: of the images with the exported file from
those of the edit. A LoRA of a full-rank change is exported at the energy 0.999 and loses what its
column shows. ``diff`` is read by ComfyUI alone; `tests/api/test_export.py` applies its rule.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import head, line

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
EDITS: dict[str, dict[str, Any]] = {
    "UCE": {"method": "UCE"},
    "ESD": {"method": "ESD", "steps": 4, "lr": 1e-3, "warmup": 0},
    "ESD, rank 4": {
        "method": "ESD",
        "steps": 4,
        "lr": 1e-2,
        "warmup": 0,
        "rank": 4,
        "merge": False,
    },
}
FORMATS = ("diffusers", "component", "checkpoint", "lora", "kohya-lora")

#: Why stock diffusers does not read a family's files in a format.
_WIDTH = "read at the published width alone"
UNREAD = {
    ("StableDiffusion3Pipeline", "kohya-lora"): "no reader",
    ("PixArtSigmaPipeline", "checkpoint"): "no layout",
    ("FluxPipeline", "kohya-lora"): _WIDTH,
    ("FluxPipeline", "checkpoint"): _WIDTH,  # tests/original_layouts.py reads other widths
}

#: Loads an export with stock diffusers and saves the images; no import of ours.
STOCK = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline
form, base, export, prompt, out = sys.argv[1:]
if form == "checkpoint":
    whole = DiffusionPipeline.from_pretrained(base)
    names = [name for name in whole.components if name.startswith("text_encoder")]
    # Files of FLUX.1 hold no text encoders, and those of SD 3 not all of the first.
    given = type(whole).__name__ in ("StableDiffusion3Pipeline", "FluxPipeline")
    parts = {name: getattr(whole, name) for name in names if given}
    pipeline = type(whole).from_single_file(export, config=base, local_files_only=True, **parts)
else:
    pipeline = DiffusionPipeline.from_pretrained(export if form == "diffusers" else base)
if form == "component":
    from pathlib import Path
    for folder in Path(export).iterdir():
        part = getattr(pipeline, folder.name)
        setattr(pipeline, folder.name, type(part).from_pretrained(folder))
elif form in ("lora", "kohya-lora"):
    pipeline.load_lora_weights(export)
assert not any(name.startswith("erasure_lightning") for name in sys.modules)
pipeline.set_progress_bar_config(disable=True)
settings = {"num_inference_steps": 8, "guidance_scale": 4.0, "output_type": "np"}
if "PixArt" in type(pipeline).__name__:
    settings["use_resolution_binning"] = False  # its bins are of published sizes
images = [pipeline(prompt, generator=torch.Generator().manual_seed(seed), **settings).images
          for seed in (0, 1)]
np.save(out, np.concatenate(images))
"""


def stock(form: str, base: Path, export: Path, prompt: str) -> np.ndarray | str:
    """Images drawn by stock diffusers, or the last line of its error."""
    out = export.with_suffix(".npy")
    command = [sys.executable, "-I", "-W", "ignore", "-c", STOCK]
    arguments = [form, str(base), str(export), prompt, str(out)]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True)
    return np.load(out) if out.exists() else result.stderr.strip().splitlines()[-1]


def cell(form: str, edit: Any, folder: Path, edited: np.ndarray, prompt: str) -> str:
    """The difference of a format's images from the edit's, or why there is none."""
    if reason := UNREAD.get((type(edit.pipeline).__name__, form)):
        return reason
    path = folder / (form if form in ("diffusers", "component") else f"{form}.safetensors")
    options = {"checkpoint": folder / "original.safetensors"} if form == "checkpoint" else {}
    try:
        exported = export_edit(edit, path, form, **options)
    except ErasureError as error:
        return f"refused: {str(error)[:60]}..."
    images = stock(form, folder / "base", path, prompt)
    if isinstance(images, str):
        return f"not read by diffusers: {images[:80]}"
    lost = f" ({exported.error:.1%} of the change)" if exported.error > 1e-3 else ""
    return f"{np.abs(images - edited).mean():.1g}{lost}"


def row(model: str, title: str, folder: Path) -> str:
    """A row: a model, a method, how far the edit moves, and every format."""
    pipeline = MODELS[model]()
    pipeline.set_progress_bar_config(disable=True)
    concept, anchor = ("cat", "dog") if model.startswith("Tiny") else ("guitar", "drum")
    pipeline.save_pretrained(folder / "base")
    if model != "TinyPixArt":  # whose family has no layout of its own
        write_original(original_tensors(pipeline), folder / "original.safetensors")
    prompt = f"a {concept}"
    before = stock("diffusers", folder / "base", folder / "base", prompt)
    arguments = dict(EDITS[title])
    if arguments["method"] == "ESD":
        arguments["latents"] = TrajectoryBank(trajectories=2, steps=8)
    edit = erase(pipeline, concept, anchor=anchor, progress_bar=False, **arguments)
    edited = drawn(edit, prompt)
    cells = [cell(form, edit, folder, edited, prompt) for form in FORMATS]
    return line([model, title, f"{np.abs(edited - before).mean():.2g}", *cells])


def drawn(edit: Any, prompt: str) -> np.ndarray:
    """Images of the pipeline that holds the edit, drawn in this process as `STOCK` draws."""
    pipeline = edit.pipeline
    settings = {"num_inference_steps": 8, "guidance_scale": 4.0, "output_type": "np"}
    if "PixArt" in type(pipeline).__name__:
        settings["use_resolution_binning"] = False
    images = [
        pipeline(prompt, generator=torch.Generator().manual_seed(seed), **settings).images
        for seed in (0, 1)
    ]
    return np.concatenate(images)


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    print(head(["model", "method", "edit", *FORMATS]))
    for model in options.models:
        for title in EDITS:
            with tempfile.TemporaryDirectory() as folder:
                print(row(model, title, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
