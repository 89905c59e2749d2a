"""Stable Diffusion 3 and 3.5: two CLIP text towers and a T5 tower, which may be missing."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from erasure_lightning.backbones.clip_tower import ClipTower
from erasure_lightning.backbones.compatibility import require_channels, require_text_width
from erasure_lightning.backbones.conditioning import MISSING, Conditioning
from erasure_lightning.backbones.flow_transformer import FlowTransformer
from erasure_lightning.backbones.interface import Capability, Part, Place, Size
from erasure_lightning.backbones.t5_tower import T5Tower
from erasure_lightning.backbones.towers import EmbeddedPrompts, EncoderOutput, TextTower
from erasure_lightning.errors import ErasureError

#: Tokens of T5 that the transformer reads, or rows of zeros in their place.
_T5_TOKENS = 256

#: Layers of a block's attention that compute the queries of the text.
_TEXT_QUERIES = ("add_q_proj", "norm_added_q")


class StableDiffusion3(FlowTransformer):
    """A Stable Diffusion 3 or 3.5 pipeline, with or without T5.

    The transformer reads one sequence of text states: both CLIPs' of the layer before the last,
    joined along channels and padded with zeros to the width of T5's, which follow. Without T5 there
    are zeros in place of its states. Both CLIPs' projected states at the end of text are the pooled
    vector.

    The last block drops its states of the text: its queries of the text reach no prediction, and
    are in no part. In SD 3.5 medium the first blocks have a second attention ``attn2``, in which
    image tokens attend to each other alone.
    """

    pipeline_class: ClassVar[str] = "StableDiffusion3Pipeline"
    components: ClassVar[dict[str, str]] = {
        "denoiser": "transformer",
        "text_encoders.0.model": "text_encoder",
        "text_encoders.1.model": "text_encoder_2",
        "text_encoders.2.model": "text_encoder_3",
        "vae": "vae",
    }

    capabilities: ClassVar[frozenset[Capability]] = FlowTransformer.capabilities | {
        "classifier-free guidance"
    }

    @classmethod
    def _towers(cls, pipeline: Any) -> list[TextTower]:
        """Both CLIPs, and T5 where there is one."""
        towers: list[TextTower] = [
            ClipTower(model, tokenizer, layer=-2, pooled="projected")
            for model, tokenizer in (
                (pipeline.text_encoder, pipeline.tokenizer),
                (pipeline.text_encoder_2, pipeline.tokenizer_2),
            )
        ]
        if pipeline.text_encoder_3 is not None:
            towers.append(T5Tower(pipeline.text_encoder_3, pipeline.tokenizer_3, length=_T5_TOKENS))
        return towers

    @classmethod
    def check_configs(cls, name: str, configs: Mapping[str, Any], scheduler: Any) -> None:
        """The transformer's channels are the latents', and its widths those of T5 and the CLIPs."""
        transformer = configs["transformer"]
        require_channels(name, "transformer", transformer, configs["vae"])
        clips = [configs["text_encoder"], configs["text_encoder_2"]]
        pooled = sum(clip.projection_dim for clip in clips)
        read = transformer["pooled_projection_dim"]
        require_text_width(name, "transformer", "pooled_projection_dim", read, pooled)
        width = transformer["joint_attention_dim"]
        if t5 := configs.get("text_encoder_3"):
            require_text_width(name, "transformer", "joint_attention_dim", width, t5.d_model)
        joined = sum(clip.hidden_size for clip in clips)
        if joined > width:
            raise ErasureError(
                f"The transformer of {name} needs text states of at most {width} channels"
                f" (joint_attention_dim); found {joined} of text_encoder and text_encoder_2. They"
                " belong to different models."
            )
        cls.require_flow(name, scheduler)

    def join(
        self, prompts: Sequence[EmbeddedPrompts], outputs: Sequence[EncoderOutput]
    ) -> Conditioning:
        """CLIP's states and T5's, ``(B, L_1 + L_2, D)``, in two segments.

        The summary is both pooled vectors, and the mean of T5's states but for padding, each of
        length 1: the cosine of two prompts is the mean of the towers' cosines.
        """
        clip = prompts[0]
        both = torch.cat((outputs[0].tokens, outputs[1].tokens), dim=2)
        pooled = [cast(Tensor, output.pooled) for output in outputs[:2]]
        summaries = [normalize(vector, dim=1) for vector in pooled]
        width = cast(int, cast(Any, self.denoiser).config.joint_attention_dim)
        if len(outputs) > 2:
            states = outputs[2].tokens
            roles = prompts[2].roles
            ids = prompts[2].ids
            summaries.append(normalize(prompts[2].mean_state(states), dim=1))
        else:
            states = both.new_zeros(len(both), _T5_TOKENS, width)
            roles = clip.roles.new_full(states.shape[:2], MISSING)
            ids = torch.zeros_like(roles)
        tokens = torch.cat((pad(both, (0, width - both.shape[2])), states), dim=1)
        return Conditioning(
            tokens,
            torch.cat((clip.roles, roles), dim=1),
            torch.cat((clip.ids, ids), dim=1),
            (slice(0, both.shape[1]), slice(both.shape[1], tokens.shape[1])),
            torch.cat(pooled, dim=1),
            torch.cat(summaries, dim=1),
            bidirectional=(1,),
        )

    def denoise(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None = None
    ) -> Tensor:
        """The velocity, ``(B, C, H, W)``; guidance takes two predictions."""
        with self.computing():
            velocity = self.denoiser(
                hidden_states=x,
                timestep=t.expand(len(x)),
                encoder_hidden_states=conditioning.tokens,
                pooled_projections=conditioning.pooled,
                return_dict=False,
            )[0]
        return cast(Tensor, velocity.to(self.dtype))

    def _schedule(self, steps: int, size: tuple[int, int]) -> Mapping[str, Any]:
        """Times shifted by a constant, or by the image's size where the scheduler says so."""
        if not self._scheduler.config.get("use_dynamic_shifting"):
            return {"num_inference_steps": steps}
        return {"num_inference_steps": steps, "mu": self._shift(size, 1.16)}

    def latent_shape(self, size: Size | None = None) -> tuple[int, int, int]:
        """Channels, height and width of the latents, at most as far as the table of positions."""
        shape = super().latent_shape(size)
        most = cast(Any, self.denoiser).config.pos_embed_max_size * self._patch
        if max(shape[1:]) > most:
            factor = self.vae_scale_factor
            raise ErasureError(
                f"{self.name} needs a size of at most {most * factor} pixels, for which it has"
                f" positions; found {max(shape[1:]) * factor}."
            )
        return shape

    def denoiser_parameters(self, part: Part = "all") -> dict[str, nn.Parameter]:
        """Parameters of the denoiser, or of a part of it, that a prediction depends on."""
        unread = self._unread()
        named = super().denoiser_parameters(part)
        return {name: p for name, p in named.items() if not name.startswith(unread)}

    def adaptable(self, place: Place) -> dict[str, nn.Module]:
        """Those of a flow transformer that reach a prediction."""
        named = super().adaptable(place)
        return {name: module for name, module in named.items() if name not in self._unread()}

    def _unread(self) -> tuple[str, ...]:
        """Names of the last block's queries of the text."""
        last = cast(Any, self.denoiser).config.num_layers - 1
        block = f"denoiser.transformer_blocks.{last}.attn"
        return tuple(f"{block}.{name}" for name in _TEXT_QUERIES)
