"""`CrossAttentionDiffusion`: what diffusion models with cross-attention have in common."""

from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.attention import record_attention
from erasure_lightning.backbones.interface import Capability, Place, Size, TextInput
from erasure_lightning.backbones.latent_diffusion import LatentDiffusion
from erasure_lightning.backbones.process import Diffusion
from erasure_lightning.backbones.sampler import Sampler, fresh_scheduler, unsupported_reason
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.arguments import require_choice

_PREDICTIONS: dict[str, Literal["epsilon", "velocity"]] = {
    "epsilon": "epsilon",
    "v_prediction": "velocity",
}


class CrossAttentionDiffusion(LatentDiffusion):
    """A denoiser whose blocks read the text by cross-attention ``attn2``, on a noise schedule.

    All its keys and values of the text are functions of the prompt alone, so that closed forms
    solve for every one of them.

    Args:
        name: The user's name for it.
        scheduler: The pipeline's scheduler; its ``prediction_type`` is the denoiser's.
        kwargs: Arguments of `LatentDiffusion`.

    Raises:
        ErasureError: If the prediction is neither epsilon nor velocity, or the scheduler lacks a
            property that training and sampling need (`unsupported_reason`).
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        (
            *("attention maps", "one vocabulary", "classifier-free guidance"),
            *("transformer layers", "cross-attention"),
        )
    )

    #: Part of the names of all layers inside transformers.
    _transformers: ClassVar[str]
    #: Whether the stock pipeline calls its scheduler's ``set_begin_index(0)``.
    _begins_at_index: ClassVar[bool] = False

    def __init__(self, *, name: str, scheduler: Any, **kwargs: Any) -> None:
        self.require_schedule(name, scheduler)
        process = _process(name, scheduler)
        super().__init__(name=name, scheduler=scheduler, process=process, **kwargs)

    @staticmethod
    def require_schedule(name: str, scheduler: Any) -> None:
        """Raises unless a scheduler is one of diffusion that predicts epsilon or the velocity.

        Raises:
            ErasureError: If it has no noise schedule, or another prediction type.
        """
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ErasureError(
                f"The scheduler of {name} needs a noise schedule (alphas_cumprod); found"
                f" {type(scheduler).__name__}, which has none. Name the one that the model was"
                " trained with, such as DDIMScheduler."
            )
        prediction = scheduler.config.get("prediction_type")
        if prediction not in _PREDICTIONS:
            raise ErasureError(
                f"{name} needs a scheduler that predicts epsilon or v_prediction; found"
                f" {prediction!r} in {type(scheduler).__name__}. Set the prediction_type that the"
                " model was trained with in scheduler_config.json."
            )

    def text_attention(self) -> dict[str, nn.Linear]:
        """Every ``attn2.to_k`` and ``attn2.to_v`` of the denoiser."""
        return {
            f"denoiser.{name}": module
            for name, module in self.denoiser.named_modules()
            if name.endswith(("attn2.to_k", "attn2.to_v")) and isinstance(module, nn.Linear)
        }

    def text_queries_and_keys(self) -> dict[str, nn.Linear]:
        """Every ``attn2.to_k``: text has no queries."""
        return {n: layer for n, layer in self.text_attention().items() if n.endswith("to_k")}

    def text_inputs(self) -> list[TextInput]:
        """`text_attention`, whose layers all read the text states."""
        return [TextInput(self.text_attention(), "tokens")]

    def value_layers(self) -> dict[str, nn.Linear]:
        """Every ``attn2.to_v``."""
        return {name: layer for name, layer in self.text_layers().items() if name.endswith("to_v")}

    def cross_attention_parameters(self) -> dict[str, nn.Parameter]:
        """All of every ``attn2``: queries, keys, values and outputs."""
        return {
            name: parameter
            for name, parameter in self.denoiser_parameters().items()
            if ".attn2." in name
        }

    def pixel_attention_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of every ``attn1``, and of the queries of every ``attn2``."""
        return {
            name: parameter
            for name, parameter in self.denoiser_parameters().items()
            if ".attn1." in name or ".attn2.to_q." in name
        }

    def adaptable(self, place: Place) -> dict[str, nn.Module]:
        """Every ``attn2``, or every `Linear` and `Conv2d` inside a transformer."""
        require_choice(self.name, Place, "place", place)
        modules = {f"denoiser.{name}": module for name, module in self.denoiser.named_modules()}
        if place == "text attention":
            return {name: module for name, module in modules.items() if name.endswith(".attn2")}
        return {
            name: module
            for name, module in modules.items()
            if self._transformers in name and isinstance(module, nn.Linear | nn.Conv2d)
        }

    def attention(self) -> AbstractContextManager[dict[str, Tensor]]:
        """Records the probabilities ``(B, heads, pixels, L)`` of every ``attn2``."""
        return record_attention(self.denoiser, "attn2")

    def sampler(self, steps: int, size: Size | None = None) -> Sampler:
        """The pipeline's own sampler for one rollout."""
        self._require_steps(steps, len(self._scheduler.alphas_cumprod))
        scheduler = fresh_scheduler(self._scheduler)
        return Sampler(scheduler, steps, self.device, begin_index=self._begins_at_index)

    def _default_sides(self) -> tuple[int, int]:
        """Height and width of the latents that the denoiser was trained on."""
        sides = cast(Any, self.denoiser).config.sample_size
        return (sides, sides) if isinstance(sides, int) else sides


def _process(name: str, scheduler: Any) -> Diffusion:
    """The noise process of a scheduler's config."""
    kind = type(scheduler).__name__
    process = Diffusion(scheduler.alphas_cumprod, _PREDICTIONS[scheduler.config.prediction_type])

    def make(steps: int) -> Sampler:
        return Sampler(fresh_scheduler(scheduler), steps, torch.device("cpu"))

    if cause := unsupported_reason(make, process):
        raise ErasureError(
            f"{name} needs another sampler: {kind} {cause}. Name DDIMScheduler in the folder's"
            " scheduler config, or give the pipeline one:"
            " DDIMScheduler.from_config(pipeline.scheduler.config)."
        )
    return process
