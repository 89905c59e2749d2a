"""FLUX.1: a T5 and a CLIP text tower, and a transformer of double and single blocks."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy
import torch
from torch import Tensor
from torch.nn.functional import normalize

from erasure_lightning.backbones.clip_tower import ClipTower
from erasure_lightning.backbones.compatibility import require_channels, require_text_width
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.flow_transformer import FlowTransformer
from erasure_lightning.backbones.t5_tower import T5Tower
from erasure_lightning.backbones.towers import EmbeddedPrompts, EncoderOutput, TextTower

#: Tokens of T5 that FLUX.1-dev and FLUX.1-schnell read.
_DEV_TOKENS = 512
_SCHNELL_TOKENS = 256

#: Steps for which FLUX.1-schnell was distilled.
_SCHNELL_STEPS = 4


class Flux(FlowTransformer):
    """A FLUX.1 pipeline, dev or schnell.

    The transformer reads T5's states as a sequence, and CLIP's state at the end of text as its
    pooled vector. FLUX.1-dev also reads the guidance scale, and predicts once.
    """

    pipeline_class: ClassVar[str] = "FluxPipeline"
    components: ClassVar[dict[str, str]] = {
        "denoiser": "transformer",
        "text_encoders.0.model": "text_encoder",
        "text_encoders.1.model": "text_encoder_2",
        "vae": "vae",
    }

    @classmethod
    def _towers(cls, pipeline: Any) -> list[TextTower]:
        """CLIP, for the pooled vector, and T5."""
        is_dev = pipeline.transformer.config.guidance_embeds
        return [
            ClipTower(pipeline.text_encoder, pipeline.tokenizer, pooled="end"),
            T5Tower(
                pipeline.text_encoder_2,
                pipeline.tokenizer_2,
                length=_DEV_TOKENS if is_dev else _SCHNELL_TOKENS,
            ),
        ]

    @classmethod
    def check_configs(cls, name: str, configs: Mapping[str, Any], scheduler: Any) -> None:
        """The transformer's channels are the latents', and its widths those of T5 and CLIP."""
        transformer = configs["transformer"]
        require_channels(name, "transformer", transformer, configs["vae"], patch=4)
        settings = {
            "joint_attention_dim": "text_encoder_2",
            "pooled_projection_dim": "text_encoder",
        }
        for setting, tower in settings.items():
            width = configs[tower].hidden_size
            require_text_width(name, "transformer", setting, transformer[setting], width)
        cls.require_flow(name, scheduler)

    def join(
        self, prompts: Sequence[EmbeddedPrompts], outputs: Sequence[EncoderOutput]
    ) -> Conditioning:
        """T5's states ``(B, L, D)`` and CLIP's state at the end of text ``(B, P)``.

        The summary is the mean of T5's states but for padding, and the pooled vector, each of
        length 1: the cosine of two prompts is the mean of both towers' cosines.
        """
        tokens = outputs[1].tokens
        pooled = cast(Tensor, outputs[0].pooled)
        embedded = prompts[1]
        mean = embedded.mean_state(tokens)
        summary = torch.cat((normalize(mean, dim=1), normalize(pooled, dim=1)), dim=1)
        segments = (slice(0, tokens.shape[1]),)
        return Conditioning(
            tokens, embedded.roles, embedded.ids, segments, pooled, summary, bidirectional=(0,)
        )

    def denoise(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None = None
    ) -> Tensor:
        """The velocity, ``(B, C, H, W)``."""
        height, width = x.shape[-2:]
        scale = None
        if self.embeds_guidance:
            scale = torch.full((len(x),), 1.0 if guidance is None else guidance, device=x.device)
        with self.computing():
            velocity = self.denoiser(
                hidden_states=_pack(x),
                timestep=t.expand(len(x)).to(x.dtype) / 1000,
                guidance=scale,
                pooled_projections=conditioning.pooled,
                encoder_hidden_states=conditioning.tokens,
                txt_ids=torch.zeros(conditioning.tokens.shape[1], 3).to(x),
                img_ids=_positions(height // 2, width // 2).to(x),
                return_dict=False,
            )[0]
        return _unpack(velocity.to(self.dtype), height, width)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the transformer reads the guidance scale: FLUX.1-dev does, schnell does not."""
        return bool(cast(Any, self.denoiser).config.guidance_embeds)

    @property
    def default_sampling(self) -> tuple[int, float]:
        """As of any family; of schnell, which is distilled, four steps without guidance."""
        is_schnell = self.world is None and not self.embeds_guidance
        return (_SCHNELL_STEPS, 1.0) if is_schnell else super().default_sampling

    def _schedule(self, steps: int, size: tuple[int, int]) -> Mapping[str, Any]:
        """Times shifted towards noise the more, the larger the image is."""
        mu = self._shift(size, 1.15)
        if self._scheduler.config.get("use_flow_sigmas"):
            return {"num_inference_steps": steps, "mu": mu}
        return {"sigmas": numpy.linspace(1.0, 1 / steps, steps), "mu": mu}


def _pack(latents: Tensor) -> Tensor:
    """Squares of four latents ``(B, C, h, w)`` as tokens ``(B, h w / 4, 4 C)``."""
    count, channels, height, width = latents.shape
    squares = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `_pack`."""
    count, _, channels = tokens.shape
    grid = tokens.reshape(count, height // 2, width // 2, channels // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _positions(height: int, width: int) -> Tensor:
    """Rotary positions ``(0, row, column)`` of image tokens, ``(height * width, 3)``."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((torch.zeros_like(rows), rows, columns), dim=2).flatten(0, 1)
