"""Stable Diffusion 1.x and 2.x: a CLIP text tower and a UNet with cross-attention."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.clip_tower import ClipTower
from erasure_lightning.backbones.compatibility import require_channels, require_text_width
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.cross_attention_diffusion import CrossAttentionDiffusion
from erasure_lightning.backbones.interface import Capability
from erasure_lightning.backbones.towers import EmbeddedPrompts, EncoderOutput, TextTower
from erasure_lightning.errors import ErasureError


class StableDiffusion(CrossAttentionDiffusion):
    """A Stable Diffusion 1.x or 2.x pipeline."""

    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"
    components: ClassVar[dict[str, str]] = {
        "denoiser": "unet",
        "text_encoders.0.model": "text_encoder",
        "vae": "vae",
    }
    capabilities: ClassVar[frozenset[Capability]] = CrossAttentionDiffusion.capabilities | {
        "last text states"
    }
    _transformers: ClassVar[str] = ".attentions."

    @classmethod
    def _towers(cls, pipeline: Any) -> list[TextTower]:
        """CLIP's."""
        return [ClipTower(pipeline.text_encoder, pipeline.tokenizer)]

    @classmethod
    def check_configs(cls, name: str, configs: Mapping[str, Any], scheduler: Any) -> None:
        """The UNet's channels are the latents', its width is that of the joined text states."""
        unet = configs["unet"]
        if unet.get("class_embed_type") or unet.get("num_class_embeds"):
            raise ErasureError(
                f"The unet of {name} needs noisy latents and prompts as its only inputs; found one"
                " with embeddings of classes or images. Models such as unCLIP are not read."
            )
        require_channels(name, "unet", unet, configs["vae"])
        width = sum(
            config.hidden_size for part, config in configs.items() if part.startswith("text")
        )
        read = unet.get("encoder_hid_dim") or unet["cross_attention_dim"]
        require_text_width(name, "unet", "cross_attention_dim", read, width)
        cls.require_schedule(name, scheduler)

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
