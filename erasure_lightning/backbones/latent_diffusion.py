"""`LatentDiffusion`: a backbone in the latents of an autoencoder, with a diffusers scheduler."""

import hashlib
import inspect
import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.families import FAMILIES
from erasure_lightning.backbones.interface import Size
from erasure_lightning.backbones.towers import TextTower
from erasure_lightning.checks import require
from erasure_lightning.concepts.worlds import World
from erasure_lightning.errors import ErasureError


class LatentDiffusion(Backbone):
    """A denoiser of an autoencoder's latents, sampled by a diffusers scheduler.

    Args:
        vae: An `AutoencoderKL`.
        scheduler: The pipeline's scheduler.
        kwargs: Arguments of `Backbone`.

    Raises:
        ErasureError: If the autoencoder's scale is not above 0, or NaN or infinite.
    """

    #: Latents along each side that the denoiser reads as one.
    _patch = 1

    def __init__(self, *, vae: nn.Module, scheduler: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        config = cast(Any, vae).config
        require(f"The vae of {self.name}", above=0, scaling_factor=config.scaling_factor)
        require(f"The vae of {self.name}", shift_factor=config.shift_factor)
        self.vae = vae
        self._scheduler = scheduler

    @classmethod
    def from_pipeline(cls, name: str, pipeline: Any, world: World | None = None) -> Self:
        """The backbone of a pipeline of `pipeline_class`."""
        return cls(
            name=name,
            denoiser=getattr(pipeline, cls.components["denoiser"]),
            vae=pipeline.vae,
            towers=cls._towers(pipeline),
            scheduler=pipeline.scheduler,
            world=world,
            **cls._settings(pipeline, world),
        )

    @classmethod
    @abstractmethod
    def _towers(cls, pipeline: Any) -> list[TextTower]:
        """The text towers of a pipeline, as its denoiser reads them."""

    @classmethod
    def _settings(cls, pipeline: Any, world: World | None) -> dict[str, Any]:
        """Further arguments of the constructor."""
        return {}

    def to_pipeline(self) -> Any:
        """A pipeline of `pipeline_class`, without what backbones leave out (`Family.options`)."""
        import diffusers

        parts: dict[str, Any] = {"vae": self.vae, "scheduler": self._scheduler}
        parts[self.components["denoiser"]] = self.denoiser
        family = FAMILIES[self.pipeline_class]
        for (tokenizer, encoder), tower in zip_longest(family.tokenizers.items(), self.towers):
            parts[tokenizer] = tower.tokenizer if tower else None
            parts[encoder] = tower.model if tower else None
        parts |= {**family.options, **self._pipeline_options()}
        return getattr(diffusers, self.pipeline_class)(**parts)

    def _pipeline_options(self) -> dict[str, Any]:
        """Arguments of the pipeline's constructor beside its components."""
        return {}

    @abstractmethod
    def _default_sides(self) -> tuple[int, int]:
        """Height and width of the latents that the denoiser was trained on."""

    def _require_steps(self, steps: int, most: int) -> None:
        """Raises unless a number of sampling steps is in 1..``most``."""
        if not 1 <= steps <= most:
            raise ErasureError(f"{self.name} needs from 1 to {most} sampling steps; found {steps}.")

    @property
    def default_sampling(self) -> tuple[int, float]:
        """Sampling steps and guidance scale: the world's, else the stock pipeline's own."""
        if self.world is not None:
            return self.world.steps, self.world.guidance
        import diffusers

        pipeline = getattr(diffusers, self.pipeline_class)
        parameters = inspect.signature(pipeline.__call__).parameters
        return parameters["num_inference_steps"].default, parameters["guidance_scale"].default

    @property
    def sampler_name(self) -> str:
        """Class of the pipeline's scheduler."""
        return type(self._scheduler).__name__

    @property
    def sampler_settings(self) -> dict[str, Any]:
        """The scheduler's config."""
        return {
            key: value for key, value in self._scheduler.config.items() if not key.startswith("_")
        }

    @property
    def sampling_fingerprint(self) -> str:
        """A short hash of the scheduler's class and config."""
        settings = self.sampler_settings
        text = json.dumps([self.sampler_name, settings], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side."""
        levels = cast(list[int], cast(Any, self.vae).config.block_out_channels)
        return int(2 ** (len(levels) - 1))

    def latent_shape(self, size: Size | None = None) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        channels = cast(int, cast(Any, self.vae).config.latent_channels)
        size = size or self.size
        if size is None:
            return channels, *self._default_sides()
        factor = self.vae_scale_factor
        multiple = factor * self._patch
        height, width = (size, size) if isinstance(size, int) else size
        for side in (height, width):
            if side < multiple or side % multiple:
                raise ErasureError(
                    f"{self.name} needs a size that is a multiple of {multiple} pixels; found"
                    f" {side}."
                )
        return channels, height // factor, width // factor

    @contextmanager
    def _autoencoding(self) -> Iterator[None]:
        """Computes in the backbone's precision, but in float32 where that is float16.

        Stable Diffusion XL's autoencoder overflows in float16; its stock pipeline converts it too.
        """
        if self.base_dtype is not torch.float16:
            with self.computing():
                yield
            return
        dtype = next(self.vae.parameters()).dtype
        self.vae.float()
        try:
            yield
        finally:
            self.vae.to(dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in 0..1."""
        vae = cast(Any, self.vae)
        scaled = latents / vae.config.scaling_factor
        if vae.config.shift_factor is not None:
            scaled = scaled + vae.config.shift_factor
        with self._autoencoding():
            images = vae.decode(scaled, return_dict=False)[0]
        return cast(Tensor, (images.to(self.dtype) / 2 + 0.5).clamp(0, 1))

    def compress(self, images: Tensor) -> Tensor:
        """Latents ``(B, C, h, w)`` of images in 0..1: the mode of the autoencoder's posterior."""
        vae = cast(Any, self.vae)
        with self._autoencoding():
            latents = vae.encode(images * 2 - 1).latent_dist.mode().to(self.dtype)
        shift = vae.config.shift_factor
        latents = latents if shift is None else latents - shift
        return cast(Tensor, latents * vae.config.scaling_factor)
