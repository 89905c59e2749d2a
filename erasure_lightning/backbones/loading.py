"""Turns what the user named (a world, a diffusers folder, a Hub id) into a `Backbone`."""

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.errors import ErasureError
from erasure_lightning.worlds import World, find_world

#: Which weights are read.
Weights = Literal["all", "text encoders", "none"]

#: Pipeline classes and the family that takes them apart.
FAMILIES = {"StableDiffusionPipeline": "Stable Diffusion 1.x and 2.x"}


def load_backbone(name: str, dtype: torch.dtype = torch.float32, weights: Weights = "all") -> Backbone:
    """Load a text-to-image model.

    Args:
        name: A world's name (``emoji-world``), a folder as diffusers writes it, or a Hub id (``owner/model``); only the
            last goes to the network.
        dtype: Precision of all weights, whatever they are stored in.
        weights: Which are read: ``all``; those of the ``text encoders`` and the autoencoder, where another rank will
            give this one its denoiser's, which are on the meta device till then; or ``none``, where shapes are all that
            is asked for.

    Raises:
        ErasureError: If nothing is there, the family is not known, or the weights are not safetensors.
    """
    world = find_world(name)
    source = str(world.pipeline) if world else name
    if not Path(source).exists() and (source.count("/") != 1 or source.startswith((".", "~"))):
        raise ErasureError(
            f"The backbone {name!r} was not found: it is no installed world, no folder, and no Hub id (owner/model)."
        )
    family = _family(source)
    if family not in FAMILIES:
        known = ", ".join(f"{k} ({v})" for k, v in FAMILIES.items())
        raise ErasureError(f"The backbone {name!r} needs a known pipeline class; found {family}. Known: {known}.")
    _refuse_pickles(source)
    return _stable_diffusion(name, source, world, dtype, weights)


def _family(source: str) -> str:
    """The pipeline class that ``model_index.json`` names."""
    if Path(source).is_dir():
        index = Path(source, "model_index.json")
        if not index.is_file():
            raise ErasureError(f"The folder {source} needs a model_index.json as diffusers writes it; found none.")
        return str(json.loads(index.read_text()).get("_class_name"))
    from diffusers import DiffusionPipeline

    try:
        return str(DiffusionPipeline.load_config(source)["_class_name"])
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ErasureError(f"The Hub id {source!r} could not be read: {first}") from error


def _refuse_pickles(source: str) -> None:
    for part in ("unet", "vae", "text_encoder"):
        folder = Path(source, part)
        if folder.is_dir() and not any(folder.glob("*.safetensors")):
            found = (
                ", ".join(sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".ckpt"})) or "none"
            )
            raise ErasureError(
                f"{folder} needs weights as safetensors; found {found}. Pickles can run code and are not read: load "
                "it once where you trust it, and write it with pipeline.save_pretrained(folder)."
            )


def _stable_diffusion(name: str, source: str, world: World | None, dtype: torch.dtype, weights: Weights) -> Backbone:
    import diffusers
    from transformers import CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    from erasure_lightning.backbones.stable_diffusion import StableDiffusion

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)

    settings = diffusers.DDIMScheduler.load_config(source, subfolder="scheduler")
    try:
        with torch.device("meta") if weights == "text encoders" else nullcontext():
            unet = _part(diffusers.UNet2DConditionModel, "unet", source, dtype, weights)
        pipeline = diffusers.StableDiffusionPipeline(
            unet=unet,
            vae=_part(diffusers.AutoencoderKL, "vae", source, dtype, weights),
            text_encoder=_text_encoder(source, dtype, weights),
            tokenizer=CLIPTokenizer.from_pretrained(source, subfolder="tokenizer"),
            scheduler=getattr(diffusers, settings["_class_name"]).from_config(settings),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        return StableDiffusion.from_pipeline(name, pipeline, world).requires_grad_(False)
    except OSError as error:
        raise ErasureError(f"The backbone {name!r} could not be loaded: {str(error).splitlines()[0]}") from error


def _part(cls: Any, folder: str, source: str, dtype: torch.dtype, weights: Weights) -> Any:
    """A part as diffusers makes it, with its weights if they are among those that are read."""
    if weights == "all" or (weights == "text encoders" and folder == "vae"):
        return cls.from_pretrained(source, subfolder=folder, dtype=dtype, use_safetensors=True, low_cpu_mem_usage=True)
    made = cls.from_config(cls.load_config(source, subfolder=folder)).eval()
    return made if weights == "none" else made.to(dtype)  # shapes without values cannot be moved


def _text_encoder(source: str, dtype: torch.dtype, weights: Weights) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    if weights == "none":
        return CLIPTextModel(CLIPTextConfig.from_pretrained(source, subfolder="text_encoder"))
    return CLIPTextModel.from_pretrained(source, subfolder="text_encoder", dtype=dtype, use_safetensors=True)
