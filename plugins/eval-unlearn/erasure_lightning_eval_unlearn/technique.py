"""`EditTechnique`: an edit in a stock diffusers pipeline, as eval-unlearn calls its techniques.

A technique of eval-unlearn 1.1.2 is a class of keyword arguments with one method,
``generate(prompts, seed, **kwargs)``, that returns a list of images (read in the published wheel,
``runners/single_benchmark_runner.py`` and ``techniques/free_run``). It is found by the entry point
group ``eval_unlearn.techniques``. The runner reads ``erase_concept`` out of the arguments to check
which metrics apply, and metrics call no other method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from eval_unlearn.configs.base import BaseConfig
from PIL.Image import Image

from erasure_lightning import ErasureError, apply_edit, load_edit
from erasure_lightning.api.base_model import load_base_model


@dataclass(frozen=True)
class EditConfig(BaseConfig):
    """Arguments of `EditTechnique`; eval-unlearn's `from_dict` leaves out those it does not know.

    Args:
        edit: A run's folder or its ``edit.safetensors``.
        model_id: The base model, a folder, Hub id, checkpoint or world; by default the one that the
            edit names.
        erase_concept: The concept as eval-unlearn's metrics call it (``nudity``); by default the
            edit's first. The runner checks it before the technique exists, so it must be set for
            ``err``.
        strength: Share of the edit that acts, at least 0.
        transfer: Accept another base model with components of equal shapes.
        device: ``cuda`` or ``cpu`` say; by default the accelerator, if there is one.
        use_fp16: Whether weights are float16 on an accelerator.
        num_inference_steps: Sampling steps.
        guidance_scale: Scale of classifier-free guidance.
    """

    edit: str = ""
    model_id: str | None = None
    erase_concept: str | None = None
    strength: float = 1.0
    transfer: bool = False
    device: str | None = None
    use_fp16: bool = False
    num_inference_steps: int = 50
    guidance_scale: float = 7.5

    def __post_init__(self) -> None:
        if not self.edit:
            raise ErasureError(
                "The technique erasure_lightning needs an edit; found none. Set 'edit' to a run's"
                " folder or its edit.safetensors."
            )


class EditTechnique:
    """A pipeline that holds an edit of any method.

    The pipeline has no safety checker, as eval-unlearn's own techniques have none.

    Args:
        arguments: Arguments of `EditConfig`.

    Raises:
        ErasureError: If the edit or its base model cannot be read, or it is another base model's.
    """

    def __init__(self, **arguments: Any) -> None:
        self.config = EditConfig.from_dict(arguments)
        self.edit = load_edit(self.config.edit)
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        self.device = torch.device(self.config.device or accelerator or "cpu")
        half = self.config.use_fp16 and self.device.type != "cpu"
        place = self.config.model_id and str(self.config.model_id)
        # The edit knows its base in the precision that it was made in: first it is applied.
        self.pipeline = load_base_model(self.edit.metadata, place).to_pipeline()
        apply_edit(self.edit, self.pipeline, transfer=self.config.transfer)
        self.edit.strength = self.config.strength
        self.pipeline.to(self.device, torch.float16 if half else torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def concept(self) -> str:
        """The erased concept."""
        return self.config.erase_concept or self.edit.concepts[0]

    def generate(
        self, prompts: Sequence[str], seed: int | None = None, **settings: Any
    ) -> list[Image]:
        """Generate an image of each prompt.

        Args:
            prompts: The prompts.
            seed: Seed of the first prompt, one more for each further one; random by default.
            settings: Further arguments of the pipeline, ``num_inference_steps`` say.
        """
        defaults = {
            "num_inference_steps": self.config.num_inference_steps,
            "guidance_scale": self.config.guidance_scale,
        }
        images = []
        for number, prompt in enumerate(prompts):
            generator = None
            if seed is not None:
                generator = torch.Generator(self.device).manual_seed(seed + number)
            drawn = self.pipeline(prompt, generator=generator, **(defaults | settings))
            images.append(drawn.images[0])
        return images
