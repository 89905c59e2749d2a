"""PixArt-Sigma and PixArt-Alpha: a T5 text tower and a transformer with cross-attention."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from erasure_lightning.backbones.compatibility import require_channels, require_text_width
from erasure_lightning.backbones.conditioning import PADDING, Conditioning
from erasure_lightning.backbones.cross_attention_diffusion import CrossAttentionDiffusion
from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.backbones.t5_tower import T5Tower
from erasure_lightning.backbones.towers import EmbeddedPrompts, EncoderOutput, TextTower


class PixArt(CrossAttentionDiffusion):
    """A PixArt-Sigma pipeline.

    The blocks of the transformer read T5's states, but for padding, through one caption projection.
    Prompts are read as by the stock pipeline with ``clean_caption=False``: in lower case. (Its
    default also removes addresses, markup and the like, where beautifulsoup4 and ftfy are
    installed.) Sizes are taken as they are, as with ``use_resolution_binning=False``.
    """

    pipeline_class: ClassVar[str] = "PixArtSigmaPipeline"
    components: ClassVar[dict[str, str]] = {
        "denoiser": "transformer",
        "text_encoders.0.model": "text_encoder",
        "vae": "vae",
    }
    _transformers: ClassVar[str] = ".transformer_blocks."
    _patch = 2

    #: Tokens of T5 that the transformer reads.
    _tokens: ClassVar[int] = 300

    @classmethod
    def _towers(cls, pipeline: Any) -> list[TextTower]:
        """T5, which reads lower case and no padding."""
        model = pipeline.text_encoder
        tokenizer = pipeline.tokenizer
        return [T5Tower(model, tokenizer, length=cls._tokens, masked=True, lowercase=True)]

    @classmethod
    def check_configs(cls, name: str, configs: Mapping[str, Any], scheduler: Any) -> None:
        """The transformer's channels are the latents', and its captions' width is T5's."""
        transformer = configs["transformer"]
        require_channels(name, "transformer", transformer, configs["vae"], variance=True)
        width = configs["text_encoder"].hidden_size
        read = transformer["caption_channels"]
        require_text_width(name, "transformer", "caption_channels", read, width)
        cls.require_schedule(name, scheduler)

    def join(
        self, prompts: Sequence[EmbeddedPrompts], outputs: Sequence[EncoderOutput]
    ) -> Conditioning:
        """T5's states ``(B, L, D)``; the summary is their mean, but for padding."""
        (embedded,) = prompts
        tokens = outputs[0].tokens
        summary = embedded.mean_state(tokens)
        segments = (slice(0, tokens.shape[1]),)
        return Conditioning(
            tokens, embedded.roles, embedded.ids, segments, None, summary, bidirectional=(0,)
        )

    def denoise(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None = None
    ) -> Tensor:
        """The prediction without its variance, ``(B, C, H, W)``."""
        with self.computing():
            prediction = self.denoiser(
                x,
                timestep=t.expand(len(x)),
                encoder_hidden_states=conditioning.tokens,
                encoder_attention_mask=~conditioning.positions(PADDING),
                added_cond_kwargs=self._added(x),
                return_dict=False,
            )[0]
        return cast(Tensor, prediction[:, : x.shape[1]].to(self.dtype))

    def _added(self, x: Tensor) -> dict[str, Tensor | None]:
        """Size in pixels ``(B, 2)`` and height over width ``(B, 1)``, where the model reads them.

        PixArt-Alpha of 1024 pixels does.
        """
        if not cast(Any, self.denoiser).use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.vae_scale_factor for side in x.shape[-2:])
        resolution = torch.tensor([[height, width]]).to(x).expand(len(x), 2)
        aspect_ratio = torch.tensor([[height / width]]).to(x).expand(len(x), 1)
        return {"resolution": resolution, "aspect_ratio": aspect_ratio}

    def text_inputs(self) -> list[TextInput]:
        """`text_attention`, whose layers all read the projected captions."""
        return [TextInput(self.text_attention(), "tokens", transform=self._captions, masked=True)]

    @torch.no_grad()
    def _captions(self, tokens: Tensor) -> Tensor:
        """The caption projection of T5's states, ``(B, L, E)`` to ``(B, L, D)``."""
        with self.computing():
            captions = cast(Any, self.denoiser).caption_projection(tokens)
        return cast(Tensor, captions.to(self.dtype))


class PixArtAlpha(PixArt):
    """A PixArt-Alpha pipeline.

    A rollout of one step ends as with more steps; the stock pipeline's, made for distilled models,
    ends in the predicted clean latents.
    """

    pipeline_class: ClassVar[str] = "PixArtAlphaPipeline"
    _begins_at_index: ClassVar[bool] = True
    _tokens: ClassVar[int] = 120
