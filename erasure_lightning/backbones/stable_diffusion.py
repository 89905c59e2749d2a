"""Stable Diffusion 1.x and 2.x: a CLIP text tower and a UNet with cross-attention."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.attention import record_attention
from erasure_lightning.backbones.clip_tower import ClipTower
from erasure_lightning.backbones.compatibility import require_channels, require_text_width
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Capability, Place, Size, TextInput
from erasure_lightning.backbones.latent_diffusion import LatentDiffusion
from erasure_lightning.backbones.process import Diffusion
from erasure_lightning.backbones.sampler import Sampler, fresh_scheduler, unsupported_reason
from erasure_lightning.backbones.towers import EmbeddedPrompts, EncoderOutput, TextTower
from erasure_lightning.concepts.worlds import World
from erasure_lightning.errors import ErasureError

_PREDICTIONS: dict[str, Literal["epsilon", "velocity"]] = {
    "epsilon": "epsilon",
    "v_prediction": "velocity",
}


class StableDiffusion(LatentDiffusion):
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
        super().__init__(
            name=name,
            denoiser=unet,
            text_encoders=towers,
            process=_process(name, scheduler),
            vae=vae,
            scheduler=scheduler,
            world=world,
        )

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

    @classmethod
    def check_configs(cls, name: str, configs: Mapping[str, Any], scheduler: Any) -> None:
        """The UNet's channels are the latents', and its width that of the joined text states."""
        unet = configs["unet"]
        require_channels(name, "unet", unet, configs["vae"])
        width = sum(
            config.hidden_size for part, config in configs.items() if part.startswith("text")
        )
        read = unet.get("encoder_hid_dim") or unet["cross_attention_dim"]
        require_text_width(name, "unet", "cross_attention_dim", read, width)
        _require_schedule(name, scheduler)

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

    def text_attention(self) -> dict[str, nn.Linear]:
        """Every ``attn2.to_k`` and ``attn2.to_v`` of the UNet."""
        return {
            f"denoiser.{name}": module
            for name, module in self.denoiser.named_modules()
            if name.endswith(("attn2.to_k", "attn2.to_v")) and isinstance(module, nn.Linear)
        }

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

    def sampler(self, steps: int, size: Size | None = None) -> Sampler:
        """The pipeline's own sampler for one rollout."""
        self._require_steps(steps, len(self._scheduler.alphas_cumprod))
        scheduler = fresh_scheduler(self._scheduler)
        return Sampler(scheduler, steps, self.device, begin_index=self._begins_at_index)

    def _default_sides(self) -> tuple[int, int]:
        """Height and width of the latents that the UNet was trained on."""
        sides = cast(Any, self.denoiser).config.sample_size
        return (sides, sides) if isinstance(sides, int) else sides


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

    def make(steps: int) -> Sampler:
        return Sampler(fresh_scheduler(scheduler), steps, torch.device("cpu"))

    if cause := unsupported_reason(make, process):
        raise ErasureError(
            f"{name} needs another sampler: {kind} {cause}. Name DDIMScheduler in the folder's"
            " scheduler config, or give the pipeline one:"
            " DDIMScheduler.from_config(pipeline.scheduler.config)."
        )
    return process


def _require_schedule(name: str, scheduler: Any) -> None:
    """Raises unless a scheduler is one of diffusion that predicts epsilon or the velocity."""
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ErasureError(
            f"The scheduler of {name} needs a noise schedule (alphas_cumprod); found"
            f" {type(scheduler).__name__}, which has none. Name the one that the model was trained"
            " with, such as DDIMScheduler."
        )
    prediction = scheduler.config.get("prediction_type")
    if prediction not in _PREDICTIONS:
        raise ErasureError(
            f"{name} needs a scheduler that predicts epsilon or v_prediction; found {prediction!r}."
        )
