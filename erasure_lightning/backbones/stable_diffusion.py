"""Stable Diffusion 1.x and 2.x: a CLIP text tower and a UNet with cross-attention."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.attention import record_attention
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Capability, Place, Size, TextInput
from erasure_lightning.backbones.process import Diffusion
from erasure_lightning.backbones.sampler import Sampler, fresh_scheduler, unsupported_reason
from erasure_lightning.backbones.towers import ClipTower, EmbeddedPrompts, EncoderOutput, TextTower
from erasure_lightning.concepts.worlds import World
from erasure_lightning.errors import ErasureError

_PREDICTIONS: dict[str, Literal["epsilon", "velocity"]] = {
    "epsilon": "epsilon",
    "v_prediction": "velocity",
}


class StableDiffusion(Backbone):
    """A Stable Diffusion 1.x or 2.x pipeline.

    Args:
        name: The user's name for it.
        unet: A `UNet2DConditionModel`.
        vae: An `AutoencoderKL`.
        towers: The text towers, in the order in which their states are joined.
        scheduler: The pipeline's scheduler; its ``prediction_type`` is the UNet's.
        world: The world it came from, where it came from one.

    Raises:
        ErasureError: If the prediction is neither epsilon nor velocity, or the scheduler lacks a
            property that training and sampling need (`unsupported_reason`).
    """

    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"
    components: ClassVar[dict[str, str]] = {
        "denoiser": "unet",
        "text_encoders.0.model": "text_encoder",
        "vae": "vae",
    }
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        ("attention maps", "one vocabulary", "transformer layers", "cross-attention")
    )

    #: Whether the stock pipeline calls its scheduler's ``set_begin_index(0)``.
    _begins_at_index = False

    def __init__(
        self,
        *,
        name: str,
        unet: nn.Module,
        vae: nn.Module,
        towers: Sequence[TextTower],
        scheduler: Any,
        world: World | None = None,
    ) -> None:
        process = _process(name, scheduler)
        super().__init__(
            name=name, denoiser=unet, text_encoders=towers, process=process, world=world
        )
        self.vae = vae
        self._scheduler = scheduler

    @classmethod
    def from_pipeline(cls, name: str, pipeline: Any, world: World | None = None) -> Self:
        """The backbone of a `StableDiffusionPipeline`."""
        tower = ClipTower(pipeline.text_encoder, pipeline.tokenizer)
        return cls(
            name=name,
            unet=pipeline.unet,
            vae=pipeline.vae,
            towers=[tower],
            scheduler=pipeline.scheduler,
            world=world,
        )

    def to_pipeline(self) -> Any:
        """A `StableDiffusionPipeline` without a safety checker."""
        from diffusers import StableDiffusionPipeline

        (tower,) = self.towers
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=tower.model,
            tokenizer=tower.tokenizer,
            unet=self.denoiser,
            scheduler=self._scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def join(
        self, prompts: Sequence[EmbeddedPrompts], outputs: Sequence[EncoderOutput]
    ) -> Conditioning:
        """The tower's states; the summary is the state at the end of text."""
        (embedded,) = prompts
        (output,) = outputs
        rows = torch.arange(len(output.tokens), device=output.tokens.device)
        segments = (slice(0, output.tokens.shape[1]),)
        summary = output.tokens[rows, embedded.ends]
        return Conditioning(output.tokens, embedded.roles, embedded.ids, segments, None, summary)

    def denoise(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None = None
    ) -> Tensor:
        """The UNet's prediction, ``(B, C, H, W)``."""
        with self.computing():
            prediction = self.denoiser(
                x,
                t,
                encoder_hidden_states=conditioning.tokens,
                timestep_cond=self._guidance_embedding(x, guidance),
                added_cond_kwargs=self._added(x, conditioning),
                return_dict=False,
            )[0]
        return cast(Tensor, prediction.to(self.dtype))

    def _added(self, x: Tensor, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """Further inputs of the UNet."""
        return None

    @property
    def embeds_guidance(self) -> bool:
        """Whether the guidance scale is an input of the UNet, as in latent consistency models."""
        return cast(Any, self.denoiser).config.time_cond_proj_dim is not None

    def _guidance_embedding(self, x: Tensor, guidance: float | None) -> Tensor | None:
        """The sinusoidal embedding ``(B, E)`` of ``w = guidance - 1``, as in the stock pipeline."""
        if not self.embeds_guidance:
            return None
        width = cast(Any, self.denoiser).config.time_cond_proj_dim
        half = width // 2
        rates = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
        scale = torch.tensor((1.0 if guidance is None else guidance) - 1)
        angles = scale.repeat(len(x))[:, None] * 1000 * rates
        embedding = torch.cat((angles.sin(), angles.cos()), dim=1)
        return nn.functional.pad(embedding, (0, width % 2)).to(x)

    def text_inputs(self) -> list[TextInput]:
        """Every ``attn2.to_k`` and ``attn2.to_v`` of the UNet."""
        layers = {
            f"denoiser.{name}": module
            for name, module in self.denoiser.named_modules()
            if name.endswith(("attn2.to_k", "attn2.to_v")) and isinstance(module, nn.Linear)
        }
        return [TextInput(layers, "tokens")]

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

    def adaptable(self, place: Place) -> dict[str, nn.Module]:
        """Every ``attn2``, or every `Linear` and `Conv2d` inside an ``attentions`` block."""
        modules = {f"denoiser.{name}": module for name, module in self.denoiser.named_modules()}
        if place == "cross-attention":
            return {name: module for name, module in modules.items() if name.endswith(".attn2")}
        return {
            name: module
            for name, module in modules.items()
            if ".attentions." in name and isinstance(module, nn.Linear | nn.Conv2d)
        }

    def attention(self) -> AbstractContextManager[dict[str, Tensor]]:
        """Records the probabilities ``(B, heads, pixels, L)`` of every ``attn2``."""
        return record_attention(self.denoiser, "attn2")

    def sampler(self, steps: int) -> Sampler:
        """The pipeline's own sampler for one rollout."""
        most = len(self._scheduler.alphas_cumprod)
        if not 1 <= steps <= most:
            raise ErasureError(f"{self.name} needs from 1 to {most} sampling steps; found {steps}.")
        scheduler = fresh_scheduler(self._scheduler)
        return Sampler(scheduler, steps, self.device, begin_index=self._begins_at_index)

    @property
    def sampler_name(self) -> str:
        """Class of the pipeline's scheduler."""
        return type(self._scheduler).__name__

    @property
    def sampling_fingerprint(self) -> str:
        """A short hash of the scheduler's class and config."""
        config = {
            key: value for key, value in self._scheduler.config.items() if not key.startswith("_")
        }
        text = json.dumps([self.sampler_name, config], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side."""
        levels = cast(list[int], cast(Any, self.vae).config.block_out_channels)
        return int(2 ** (len(levels) - 1))

    def latent_shape(self, size: Size | None = None) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        unet = cast(Any, self.denoiser).config
        factor = self.vae_scale_factor
        if size is None:
            sides = unet.sample_size
            height, width = (sides, sides) if isinstance(sides, int) else sides
            return unet.in_channels, height, width
        height, width = (size, size) if isinstance(size, int) else size
        for side in (height, width):
            if side < factor or side % factor:
                raise ErasureError(
                    f"{self.name} needs a size that is a multiple of {factor} pixels; found {side}."
                )
        return unet.in_channels, height // factor, width // factor

    def decode(self, latents: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in 0..1."""
        vae = cast(Any, self.vae)
        with self.computing():
            images = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return cast(Tensor, (images.to(self.dtype) / 2 + 0.5).clamp(0, 1))

    def compress(self, images: Tensor) -> Tensor:
        """Latents ``(B, C, h, w)`` of images in 0..1: the mode of the autoencoder's posterior."""
        vae = cast(Any, self.vae)
        with self.computing():
            latents = vae.encode(images * 2 - 1).latent_dist.mode()
        return cast(Tensor, latents.to(self.dtype) * vae.config.scaling_factor)


def _process(name: str, scheduler: Any) -> Diffusion:
    """The noise process of a scheduler's config."""
    kind = type(scheduler).__name__
    prediction = scheduler.config.get("prediction_type")
    if prediction not in _PREDICTIONS or not hasattr(scheduler, "alphas_cumprod"):
        raise ErasureError(
            f"{name} needs a sampler that predicts epsilon or v_prediction; found {kind} with"
            f" {prediction!r}."
        )
    process = Diffusion(scheduler.alphas_cumprod, _PREDICTIONS[prediction])
    if cause := unsupported_reason(scheduler, process):
        raise ErasureError(
            f"{name} needs another sampler: {kind} {cause}. Name DDIMScheduler in the folder's"
            " scheduler config, or give the pipeline one:"
            " DDIMScheduler.from_config(pipeline.scheduler.config)."
        )
    return process
