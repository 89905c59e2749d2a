"""`FlowTransformer`: what transformers with joint attention on a rectified flow have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.attention import joint_attention_layers, record_joint_attention
from erasure_lightning.backbones.interface import Capability, Place, Size, TextInput
from erasure_lightning.backbones.latent_diffusion import LatentDiffusion
from erasure_lightning.backbones.process import RectifiedFlow
from erasure_lightning.backbones.sampler import Sampler, fresh_scheduler, unsupported_reason
from erasure_lightning.concepts.worlds import World
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.arguments import require_choice


class FlowTransformer(LatentDiffusion):
    """A transformer in which text and image tokens attend to each other, on a rectified flow.

    Only the entries of the text, of its tokens and of its pooled vector, are functions of the
    prompt alone: deeper text layers also read time and image. So closed forms solve for the
    entries; gradient methods train any part.

    Args:
        scheduler: The pipeline's scheduler.
        size: Height and width in pixels that the model was trained on.
        kwargs: Arguments of `LatentDiffusion`.

    Raises:
        ErasureError: If the scheduler lacks a property that training and sampling need.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        ("attention maps", "transformer layers")
    )
    _patch = 2

    def __init__(self, *, scheduler: Any, size: Size, **kwargs: Any) -> None:
        process = RectifiedFlow(scheduler.config.num_train_timesteps)
        super().__init__(scheduler=scheduler, process=process, **kwargs)
        height, width = (size, size) if isinstance(size, int) else size
        self._size = height, width

        def make(steps: int) -> Sampler:
            return self._make_sampler(steps, self._size, torch.device("cpu"))

        if cause := unsupported_reason(make, self.process):
            raise ErasureError(
                f"{self.name} needs another sampler: {self.sampler_name} {cause}. Name"
                " FlowMatchEulerDiscreteScheduler in the folder's scheduler config."
            )

    @classmethod
    def _settings(cls, pipeline: Any, world: World | None) -> dict[str, Any]:
        """The size that the world, or the pipeline, generates by default."""
        size = pipeline.default_sample_size * pipeline.vae_scale_factor
        return {"size": size if world is None else world.size}

    @staticmethod
    def require_flow(name: str, scheduler: Any) -> None:
        """Raises if a scheduler is one of diffusion.

        Raises:
            ErasureError: If it has a noise schedule and does not step along a flow.
        """
        if hasattr(scheduler, "alphas_cumprod") and not scheduler.config.get("use_flow_sigmas"):
            raise ErasureError(
                f"The scheduler of {name} needs to step along a flow; found"
                f" {type(scheduler).__name__}. Name the one that the model was trained with:"
                " FlowMatchEulerDiscreteScheduler."
            )

    @abstractmethod
    def _schedule(self, steps: int, size: tuple[int, int]) -> Mapping[str, Any]:
        """Arguments of the scheduler's ``set_timesteps`` as the stock pipeline gives them."""

    def sampler(self, steps: int, size: Size | None = None) -> Sampler:
        """The pipeline's own sampler for one rollout."""
        self._require_steps(steps, self._scheduler.config.num_train_timesteps)
        size = size or self.size or self._size
        height, width = (size, size) if isinstance(size, int) else size
        return self._make_sampler(steps, (height, width), self.device)

    def _make_sampler(self, steps: int, size: tuple[int, int], device: torch.device) -> Sampler:
        schedule = self._schedule(steps, size)
        return Sampler(fresh_scheduler(self._scheduler), steps, device, schedule=schedule)

    def _default_sides(self) -> tuple[int, int]:
        """Height and width of the latents that the transformer was trained on."""
        height, width = (side // self.vae_scale_factor for side in self._size)
        return height, width

    def _shift(self, size: tuple[int, int], max_shift: float) -> float:
        """Shift of the times towards noise, which grows with the number of image tokens.

        Args:
            size: Height and width in pixels.
            max_shift: The stock pipeline's default of the scheduler's setting of that name.
        """
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self._scheduler.config
        height, width = (side // (self.vae_scale_factor * self._patch) for side in size)
        shift: float = calculate_shift(
            height * width,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", max_shift),
        )
        return shift

    def text_inputs(self) -> list[TextInput]:
        """The entries of the text's tokens and of its pooled vector."""
        transformer = cast(Any, self.denoiser)
        pooled = transformer.time_text_embed.text_embedder.linear_1
        return [
            TextInput({"denoiser.context_embedder": transformer.context_embedder}, "tokens"),
            TextInput({"denoiser.time_text_embed.text_embedder.linear_1": pooled}, "pooled"),
        ]

    def text_attention(self) -> dict[str, nn.Linear]:
        """Keys and values of the text in every block with projections of its own for it."""
        return {
            f"denoiser.{name}": module
            for name, module in self.denoiser.named_modules()
            if name.endswith(("attn.add_k_proj", "attn.add_v_proj"))
            and isinstance(module, nn.Linear)
        }

    def text_queries_and_keys(self) -> dict[str, nn.Linear]:
        """Queries and keys of the text in these blocks that reach a prediction."""
        parameters = self.denoiser_parameters()
        return {
            f"denoiser.{name}": module
            for name, module in self.denoiser.named_modules()
            if name.endswith(("attn.add_q_proj", "attn.add_k_proj"))
            and isinstance(module, nn.Linear)
            and f"denoiser.{name}.weight" in parameters
        }

    def value_layers(self) -> dict[str, nn.Linear]:
        """None: the entries of the text compute no values."""
        return {}

    def cross_attention_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of every joint attention ``attn``."""
        return {
            name: parameter
            for name, parameter in self.denoiser_parameters().items()
            if ".attn." in name
        }

    def adaptable(self, place: Place) -> dict[str, nn.Module]:
        """Every joint attention whose text has its own layers, or every `Linear` in a block."""
        require_choice(self.name, Place, "place", place)
        if place == "text attention":
            joint = joint_attention_layers(self.denoiser)
            return {f"denoiser.{name}": module for name, module in joint.items()}
        return {
            f"denoiser.{name}": module
            for name, module in self.denoiser.named_modules()
            if "transformer_blocks." in name and isinstance(module, nn.Linear)
        }

    def attention(self) -> AbstractContextManager[dict[str, Tensor]]:
        """Records the pixels' probabilities ``(B, heads, pixels, L)`` in every joint attention."""
        return record_joint_attention(self.denoiser)
