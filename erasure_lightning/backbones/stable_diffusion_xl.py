"""Stable Diffusion XL: two CLIP towers, a pooled vector, and image sizes as conditions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from erasure_lightning.backbones.clip_tower import ClipTower
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.cross_attention_diffusion import CrossAttentionDiffusion
from erasure_lightning.backbones.interface import Capability, TextInput
from erasure_lightning.backbones.stable_diffusion import StableDiffusion
from erasure_lightning.backbones.towers import EmbeddedPrompts, EncoderOutput, TextTower
from erasure_lightning.concepts.worlds import World


class StableDiffusionXL(StableDiffusion):
    """A Stable Diffusion XL pipeline.

    The UNet reads both towers' states of the layer before the last, joined along channels and
    without the final norm. Beside them it reads the second tower's projected state at the end of
    text, and six numbers: original size, crop and target size.

    Args:
        zero_unconditional: Whether unconditional predictions read zeros in place of the empty
            prompt's states (the pipeline's ``force_zeros_for_empty_prompt``).
        kwargs: Arguments of `StableDiffusion`.
    """

    pipeline_class: ClassVar[str] = "StableDiffusionXLPipeline"
    components: ClassVar[dict[str, str]] = {
        "denoiser": "unet",
        "text_encoders.0.model": "text_encoder",
        "text_encoders.1.model": "text_encoder_2",
        "vae": "vae",
    }
    capabilities: ClassVar[frozenset[Capability]] = CrossAttentionDiffusion.capabilities
    _begins_at_index = True

    def __init__(self, *, zero_unconditional: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.zero_unconditional = zero_unconditional

    @classmethod
    def _towers(cls, pipeline: Any) -> list[TextTower]:
        """Both CLIPs, the second with its projection."""
        second = pipeline.text_encoder_2, pipeline.tokenizer_2
        return [
            ClipTower(pipeline.text_encoder, pipeline.tokenizer, layer=-2),
            ClipTower(*second, layer=-2, pooled="projected"),
        ]

    @classmethod
    def _settings(cls, pipeline: Any, world: World | None) -> dict[str, Any]:
        """What unconditional predictions read."""
        return {"zero_unconditional": pipeline.config.force_zeros_for_empty_prompt}

    def _pipeline_options(self) -> dict[str, Any]:
        """What unconditional predictions read."""
        return {"force_zeros_for_empty_prompt": self.zero_unconditional}

    def join(
        self, prompts: Sequence[EmbeddedPrompts], outputs: Sequence[EncoderOutput]
    ) -> Conditioning:
        """Both towers' states ``(B, L, D_1 + D_2)``.

        The summary is the first tower's state at the end of text and the pooled vector, each of
        length 1: the cosine of two prompts is the mean of both towers' cosines.
        """
        first, second = outputs
        tokens = torch.cat((first.tokens, second.tokens), dim=2)
        embedded = prompts[0]
        pooled = cast(Tensor, second.pooled)
        rows = torch.arange(len(tokens), device=tokens.device)
        ends = first.tokens[rows, embedded.ends]
        summary = torch.cat((normalize(ends, dim=1), normalize(pooled, dim=1)), dim=1)
        segments = (slice(0, tokens.shape[1]),)
        return Conditioning(tokens, embedded.roles, embedded.ids, segments, pooled, summary)

    def unconditional(self, count: int = 1) -> Conditioning:
        """Zeros if `zero_unconditional`, else the empty prompt's states."""
        empty = super().unconditional(count)
        if not self.zero_unconditional:
            return empty
        return replace(
            empty,
            tokens=torch.zeros_like(empty.tokens),
            pooled=torch.zeros_like(cast(Tensor, empty.pooled)),
            summary=torch.zeros_like(empty.summary),
        )

    @property
    def sampling_fingerprint(self) -> str:
        """The scheduler's, with `zero_unconditional`."""
        return f"{super().sampling_fingerprint}{'-zeros' if self.zero_unconditional else ''}"

    def _added(self, x: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """The pooled vector, and the sizes of uncropped images of the latents' own size."""
        height, width = (side * self.vae_scale_factor for side in x.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=x.dtype, device=x.device)
        pooled = cast(Tensor, conditioning.pooled)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}

    def text_inputs(self) -> list[TextInput]:
        """Text keys and values, and the columns of the added embedding for the pooled vector."""
        entry = cast(nn.Linear, cast(Any, self.denoiser).add_embedding.linear_1)
        width = cast(Any, self.towers[1].model).config.projection_dim
        pooled = TextInput({"denoiser.add_embedding.linear_1": entry}, "pooled", slice(0, width))
        return [*super().text_inputs(), pooled]
