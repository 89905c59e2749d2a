"""Stable Diffusion XL: two CLIP towers read at the layer before the last, a pooled vector, sizes as
conditions.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.backbones.stable_diffusion import StableDiffusion
from erasure_lightning.backbones.towers import ClipTower, EmbeddedPrompts, EncoderOutput
from erasure_lightning.concepts.worlds import World


class StableDiffusionXL(StableDiffusion):
    """The parts of a Stable Diffusion XL pipeline.

    The UNet reads both towers' states channel by channel, neither behind its final norm, and beside
    them the second tower's projected state at the end of text and six numbers: original size, crop
    and target size.

    Args:
        zero_unconditional: Whether no prompt means zeros in place of the empty prompt's states, as
            the pipeline's ``force_zeros_for_empty_prompt`` says.
        kwargs: Of `StableDiffusion`.
    """

    pipeline_class: ClassVar[str] = "StableDiffusionXLPipeline"
    components: ClassVar[dict[str, str]] = {
        "denoiser": "unet",
        "text_encoders.0.model": "text_encoder",
        "text_encoders.1.model": "text_encoder_2",
        "vae": "vae",
    }
    _begins_at_index = True

    def __init__(self, *, zero_unconditional: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.zero_unconditional = zero_unconditional

    @classmethod
    def from_pipeline(cls, name: str, pipeline: Any, world: World | None = None) -> Self:
        """A `StableDiffusionXLPipeline` taken apart."""
        first = ClipTower(pipeline.text_encoder, pipeline.tokenizer, layer=-2)
        second = ClipTower(pipeline.text_encoder_2, pipeline.tokenizer_2, layer=-2, projection=True)
        return cls(
            name=name,
            unet=pipeline.unet,
            vae=pipeline.vae,
            towers=[first, second],
            scheduler=pipeline.scheduler,
            world=world,
            zero_unconditional=pipeline.config.force_zeros_for_empty_prompt,
        )

    def to_pipeline(self) -> Any:
        """A `StableDiffusionXLPipeline` without a watermark."""
        from diffusers import StableDiffusionXLPipeline

        first, second = self.towers
        return StableDiffusionXLPipeline(
            vae=self.vae,
            text_encoder=first.model,
            text_encoder_2=second.model,
            tokenizer=first.tokenizer,
            tokenizer_2=second.tokenizer,
            unet=self.denoiser,
            scheduler=self._scheduler,
            force_zeros_for_empty_prompt=self.zero_unconditional,
            add_watermarker=False,
        )

    def join(
        self, prompts: Sequence[EmbeddedPrompts], outputs: Sequence[EncoderOutput]
    ) -> Conditioning:
        """Both towers' states ``(B, L, D_1 + D_2)``.

        Meaning is compared by the first tower's state at the end of text and the pooled vector,
        each of length 1: the cosine of two prompts is the mean of both towers' cosines.
        """
        first, second = outputs
        tokens = torch.cat((first.tokens, second.tokens), dim=2)
        embedded, pooled = prompts[0], cast(Tensor, second.pooled)
        rows = torch.arange(len(tokens), device=tokens.device)
        ends = first.tokens[rows, embedded.ends]
        summary = torch.cat((normalize(ends, dim=1), normalize(pooled, dim=1)), dim=1)
        segments = (slice(0, tokens.shape[1]),)
        return Conditioning(tokens, embedded.roles, embedded.ids, segments, pooled, summary)

    def unconditional(self, count: int = 1) -> Conditioning:
        """Zeros where the pipeline says so, else the empty prompt's states."""
        empty = super().unconditional(count)
        if not self.zero_unconditional:
            return empty
        zero = {
            name: torch.zeros_like(getattr(empty, name)) for name in ("tokens", "pooled", "summary")
        }
        return Conditioning(roles=empty.roles, ids=empty.ids, segments=empty.segments, **zero)

    @property
    def sampling_fingerprint(self) -> str:
        """The scheduler's, and whether no prompt means zeros."""
        return f"{super().sampling_fingerprint}{'-zeros' if self.zero_unconditional else ''}"

    def _added(self, x: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """The pooled vector, and the sizes: pictures are original and uncropped, of the latents'
        own size.
        """
        height, width = (side * self.vae_scale_factor for side in x.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=x.dtype, device=x.device)
        pooled = cast(Tensor, conditioning.pooled)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}

    def text_inputs(self) -> list[TextInput]:
        """Every text key and value, and the columns of the added embedding that read the pooled
        vector.
        """
        entry = cast(nn.Linear, cast(Any, self.denoiser).add_embedding.linear_1)
        width = cast(Any, self.towers[1].model).config.projection_dim
        pooled = TextInput({"denoiser.add_embedding.linear_1": entry}, "pooled", slice(0, width))
        return [*super().text_inputs(), pooled]
