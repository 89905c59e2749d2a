"""Pipeline classes of diffusers that are read, and what belongs to each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """What is read of a pipeline's folder, and who takes the pipeline apart.

    Args:
        title: The family in words.
        backbone: ``module:class`` of its `Backbone`, which has ``from_pipeline``.
        models: Component with weights -> ``(library, class)`` that ``model_index.json`` must name.
        tokenizers: Tokenizer -> text encoder that looks its ids up.
        options: Arguments of the pipeline's constructor beside its components.
    """

    title: str
    backbone: str
    models: Mapping[str, tuple[str, str]]
    tokenizers: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)


#: By the ``_class_name`` of ``model_index.json``.
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        "Stable Diffusion 1.x and 2.x",
        "erasure_lightning.backbones.stable_diffusion:StableDiffusion",
        models={
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("diffusers", "AutoencoderKL"),
            "text_encoder": ("transformers", "CLIPTextModel"),
        },
        tokenizers={"tokenizer": "text_encoder"},
        options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    )
}
