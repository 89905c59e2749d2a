"""Draws with exports by stock tools, without this package: ``python -I benchmarks/stock.py JOBS``.

JOBS is a JSON file: the base pipeline's folder, the prompt, the guidance, and of each column its
reader and its path. Images are written beside it as ``<number>.npy``, or the last line of the
reader's error as ``<number>.txt``. Readers: diffusers' own of five formats; ``comfyui``, the rule
of ComfyUI's LoRA loader (``tests/comfyui.py``); ``adapters``, the code block in docs/export.md.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import lora_pipeline
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from comfyui import load_lora
from original_layouts import narrow_flux_readers


def load(reader: str, base: str, export: str) -> DiffusionPipeline:
    """The base pipeline with an export in it, as its reader loads it."""
    if reader == "diffusers":
        return DiffusionPipeline.from_pretrained(export)
    pipeline = DiffusionPipeline.from_pretrained(base)
    if type(pipeline).__name__ == "FluxPipeline":
        replace_published_width(pipeline)
    match reader:
        case "checkpoint":
            return from_checkpoint(pipeline, base, export)
        case "component":
            for folder in Path(export).iterdir():
                part = getattr(pipeline, folder.name)
                setattr(pipeline, folder.name, type(part).from_pretrained(folder))
        case "lora":
            pipeline.load_lora_weights(export)
        case "comfyui":
            load_lora(load_file(export), pipeline)
        case "adapters":
            documented_reader()(pipeline, export)
    return pipeline


def replace_published_width(pipeline: DiffusionPipeline) -> None:
    """Let diffusers read FLUX.1's layouts at this transformer's width."""
    config = pipeline.transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    checkpoint, lora = narrow_flux_readers(width)
    SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]["checkpoint_mapping_fn"] = checkpoint
    lora_pipeline._convert_kohya_flux_lora_to_diffusers = lora


def from_checkpoint(pipeline: DiffusionPipeline, base: str, export: str) -> DiffusionPipeline:
    """A pipeline from a single file; published ones lack some text encoders, which are base's."""
    incomplete = type(pipeline).__name__ in ("StableDiffusion3Pipeline", "FluxPipeline")
    names = [name for name in pipeline.components if name.startswith("text_encoder") and incomplete]
    parts = {name: getattr(pipeline, name) for name in names}
    if type(pipeline).__name__ == "FluxPipeline":
        parts["vae"] = pipeline.vae
    return type(pipeline).from_single_file(export, config=base, local_files_only=True, **parts)


def documented_reader() -> Callable[[DiffusionPipeline, str], None]:
    """The function of docs/export.md that attaches gated adapters."""
    text = (Path(__file__).resolve().parent.parent / "docs" / "export.md").read_text()
    space = {}
    exec(re.search(r"```python\n(import json.*?)```", text, re.DOTALL)[1], space)
    return space["attach_adapters"]


def draw(pipeline: DiffusionPipeline, prompt: str) -> np.ndarray:
    """Two images of a prompt from fixed noise, ``(2, H, W, 3)`` in 0..1."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 8, "guidance_scale": 4.0, "output_type": "np"}
    if "PixArt" in type(pipeline).__name__:
        settings["use_resolution_binning"] = False  # its bins are of published sizes
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    return np.concatenate([pipeline(prompt, generator=g, **settings).images for g in generators])


def main() -> None:
    """Load and draw every job."""
    file = Path(sys.argv[1])
    jobs = json.loads(file.read_text())
    for number, (reader, export) in enumerate(jobs["exports"]):
        try:
            images = draw(load(reader, jobs["base"], export), jobs["prompt"])
        except Exception as error:  # whatever a reader raises stands in the table
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            file.with_name(f"{number}.txt").write_text(reason)
        else:
            np.save(file.with_name(f"{number}.npy"), images)
    assert not any(name.startswith("erasure_lightning") for name in sys.modules)


if __name__ == "__main__":
    main()
