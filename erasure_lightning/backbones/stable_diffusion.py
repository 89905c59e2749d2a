"""Stable Diffusion 1.x and 2.x: one CLIP text tower, a UNet with cross-attention, epsilon or velocity."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.attention import recorded
from erasure_lightning.backbones.base import (
    CONCEPT,
    END,
    PADDING,
    START,
    TEMPLATE,
    Backbone,
    Conditioning,
    Embedded,
    Place,
)
from erasure_lightning.backbones.process import Diffusion
from erasure_lightning.concepts import Phrase
from erasure_lightning.errors import ErasureError
from erasure_lightning.worlds import World

#: Sentences whose tokens are remembered.
MOST = 4096

_PREDICTIONS: dict[str, Literal["epsilon", "velocity"]] = {"epsilon": "epsilon", "v_prediction": "velocity"}


class StableDiffusion(Backbone):
    """The parts of a Stable Diffusion 1.x or 2.x pipeline.

    Args:
        name: How the user named it.
        unet: A `UNet2DConditionModel`.
        vae: An `AutoencoderKL`.
        text_encoder: A `CLIPTextModel`.
        tokenizer: Its `CLIPTokenizer`.
        scheduler: The pipeline's sampler; its config says what the UNet predicts.
        world: The world it came from, where it came from one.

    Raises:
        ErasureError: If the scheduler names a prediction other than epsilon and velocity.
    """

    #: Our parts and the pipeline's components that they are.
    components: ClassVar[dict[str, str]] = {
        "denoiser": "unet",
        "text_encoders.0": "text_encoder",
        "vae": "vae",
    }

    def __init__(
        self,
        *,
        name: str,
        unet: nn.Module,
        vae: nn.Module,
        text_encoder: nn.Module,
        tokenizer: Any,
        scheduler: Any,
        world: World | None = None,
    ) -> None:
        prediction = scheduler.config.prediction_type
        if prediction not in _PREDICTIONS:
            raise ErasureError(f"{name} needs a scheduler that predicts epsilon or v_prediction; found {prediction!r}.")
        process = Diffusion(scheduler.alphas_cumprod, _PREDICTIONS[prediction])
        super().__init__(name=name, denoiser=unet, text_encoders=[text_encoder], process=process, world=world)
        self.vae = vae
        self.tokenizer = tokenizer
        self._scheduler = scheduler
        #: Ids and roles ``(L,)`` of the sentences met last.
        self._spelt: dict[str | Phrase, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_pipeline(cls, name: str, pipeline: Any, world: World | None = None) -> Self:
        """The backbone of a `StableDiffusionPipeline`, whose models it shares."""
        # What the pipeline repaired is still listed as a default, which `from_config` would restore.
        config = {k: v for k, v in pipeline.scheduler.config.items() if k != "_use_default_values"}
        return cls(
            name=name,
            unet=pipeline.unet,
            vae=pipeline.vae,
            text_encoder=pipeline.text_encoder,
            tokenizer=pipeline.tokenizer,
            scheduler=type(pipeline.scheduler).from_config(config),
            world=world,
        )

    def embed(self, prompts: Sequence[str | Phrase]) -> tuple[Embedded, ...]:
        """Look up the prompts' words, padded to the tokenizer's full length."""
        if len(self._spelt) > MOST:
            self._spelt.clear()
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._spelt]:
            self._spelt.update(zip(new, self._spell_out(new), strict=True))
        spelt = zip(*(self._spelt[prompt] for prompt in prompts), strict=True)
        ids, roles = (torch.stack(rows).to(self.device) for rows in spelt)
        return (Embedded(self.word_tables()[0][ids].to(self.dtype), ids, roles),)

    def _spell_out(self, prompts: Sequence[str | Phrase]) -> Iterable[tuple[Tensor, Tensor]]:
        """Ids and roles ``(L,)`` of each prompt."""
        texts = [p.text if isinstance(p, Phrase) else p for p in prompts]
        spans = [(p.start, p.stop) if isinstance(p, Phrase) else (0, 0) for p in prompts]
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, return_offsets_mapping=True, return_tensors="pt"
        )
        roles = self._roles(tokens.input_ids, tokens.offset_mapping, spans)
        self._require_concepts(texts, spans, roles)
        return zip(tokens.input_ids, roles, strict=True)

    def _roles(self, ids: Tensor, offsets: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        start, stop = torch.tensor(spans).unsqueeze(1).unbind(dim=2)
        first, last = offsets.unbind(dim=2)
        roles = torch.full_like(ids, TEMPLATE)
        roles[(first < stop) & (last > start) & (last > first)] = CONCEPT
        ends = (ids[:, 1:] == self.tokenizer.eos_token_id).int().argmax(dim=1, keepdim=True) + 1
        place = torch.arange(ids.shape[1])
        roles[place > ends] = PADDING
        roles[place == ends] = END
        roles[:, 0] = START
        return roles

    def _require_concepts(self, texts: Sequence[str], spans: Sequence[tuple[int, int]], roles: Tensor) -> None:
        for text, (start, stop), row in zip(texts, spans, roles, strict=True):
            if stop > start and not (row == CONCEPT).any():
                raise ErasureError(
                    f"{self.name} reads {self.tokenizer.model_max_length} tokens; found {text[start:stop]!r} behind "
                    f"the last of them in {text!r}. Shorten the sentence."
                )

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Those of the prompts that have more tokens than the tokenizer keeps."""
        most = self.tokenizer.model_max_length
        some = [p for p in prompts if len(p.encode()) + 2 > most]  # a token spells a byte at least
        rows = self.tokenizer(some).input_ids if some else []
        return [p for p, ids in zip(some, rows, strict=True) if len(ids) > most]

    @property
    def _tower(self) -> Any:
        return self.text_encoders[0]

    def contextualize(self, embedded: Sequence[Embedded]) -> Conditioning:
        """Run the text tower on input embeddings: ``(B, L, E)`` to ``(B, L, D)`` behind its final norm."""
        (only,) = embedded
        # CLIPTextModel takes ids alone; the table's output is the one place where other embeddings can enter.
        words = only.embeddings.to(self.base)
        handle = self._tower.get_input_embeddings().register_forward_hook(lambda *_: words)
        try:
            with self.computing():
                return Conditioning(self._tower(input_ids=only.ids).last_hidden_state.to(self.dtype))
        finally:
            handle.remove()

    def denoise(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction, ``(B, C, H, W)``."""
        with self.computing():
            said = self.denoiser(x, t, encoder_hidden_states=conditioning.tokens, return_dict=False)[0]
        return cast(Tensor, said.to(self.dtype))

    def text_layers(self) -> dict[str, nn.Linear]:
        """Every ``attn2.to_k`` and ``attn2.to_v`` of the UNet."""
        ends = ("attn2.to_k", "attn2.to_v")
        found = ((n, m) for n, m in self.denoiser.named_modules() if n.endswith(ends))
        return {f"denoiser.{n}": m for n, m in found if isinstance(m, nn.Linear)}

    def cross_attention_parameters(self) -> dict[str, nn.Parameter]:
        """All of every ``attn2``: queries, keys, values and outputs."""
        return {name: parameter for name, parameter in self.denoiser_parameters().items() if ".attn2." in name}

    def adaptable(self, place: Place) -> dict[str, nn.Module]:
        """Every ``attn2``, or every `Linear` and `Conv2d` inside an ``attentions`` block."""
        found = {f"denoiser.{name}": module for name, module in self.denoiser.named_modules()}
        if place == "cross-attention":
            return {name: module for name, module in found.items() if name.endswith(".attn2")}
        layers = (nn.Linear, nn.Conv2d)
        return {name: m for name, m in found.items() if ".attentions." in name and isinstance(m, layers)}

    def attention(self) -> AbstractContextManager[dict[str, Tensor]]:
        """Collects the probabilities ``(B, heads, pixels, L)`` of every ``attn2``."""
        return recorded(self.denoiser, "attn2")

    def word_tables(self) -> tuple[Tensor, ...]:
        """The text tower's token table."""
        return (cast(Tensor, self._tower.get_input_embeddings().weight).detach(),)

    def words(self) -> Tensor:
        """Tokens that end a word and are read as themselves where they stand between other words."""
        ids = torch.arange(len(self.tokenizer))
        spelt = self.tokenizer.batch_decode(ids.unsqueeze(1), skip_special_tokens=True)
        read = self.tokenizer([f"a {word.strip()} a" for word in spelt]).input_ids
        around = self.tokenizer("a a").input_ids
        kept = [tokens == [*around[:2], i, *around[2:]] for i, tokens in enumerate(read)]
        return ids[torch.tensor(kept)].to(self.device)

    def spell(self, ids: Tensor) -> str:
        """What the tokenizer decodes."""
        return cast(str, self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()

    def text_parameters(self, blocks: int | None = None) -> dict[str, nn.Parameter]:
        """Transformer blocks and final norm of the text tower; tables stay, so that a word means one embedding."""
        count = self._tower.config.num_hidden_layers
        first = 0 if blocks is None else max(count - blocks, 0)
        wanted = (*(f"encoder.layers.{i}." for i in range(first, count)), "final_layer_norm.")
        found = self._tower.named_parameters()
        return {f"text_encoders.0.{name}": parameter for name, parameter in found if name.startswith(wanted)}

    def scheduler(self, steps: int) -> Any:
        """A fresh sampler of the pipeline's own kind."""
        scheduler = type(self._scheduler).from_config(self._scheduler.config)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    def latent_shape(self, size: int | tuple[int, int] | None = None) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        unet, vae = cast(Any, self.denoiser).config, cast(Any, self.vae).config
        factor = 2 ** (len(vae.block_out_channels) - 1)
        sides = [unet.sample_size * factor] * 2 if size is None else [size] * 2 if isinstance(size, int) else size
        if bad := [side for side in sides if side < factor or side % factor]:
            raise ErasureError(f"{self.name} needs a size that is a multiple of {factor} pixels; found {bad[0]}.")
        return unet.in_channels, sides[0] // factor, sides[1] // factor

    def noise(self, seeds: Sequence[int], size: int | tuple[int, int] | None = None) -> Tensor:
        """Starting latents ``(B, C, h, w)``, drawn on the CPU so that every device starts from the same."""
        shape = self.latent_shape(size)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn).to(self.device, self.dtype) * float(self._scheduler.init_noise_sigma)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in 0..1."""
        vae = cast(Any, self.vae)
        with self.computing():
            pictures = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return cast(Tensor, (pictures.to(self.dtype) / 2 + 0.5).clamp(0, 1))

    def compress(self, pictures: Tensor) -> Tensor:
        """Latents ``(B, C, h, w)`` of pictures in 0..1: the mode of the autoencoder's posterior, nothing drawn."""
        vae = cast(Any, self.vae)
        with self.computing():
            latents = vae.encode(pictures * 2 - 1).latent_dist.mode()
        return cast(Tensor, latents.to(self.dtype) * vae.config.scaling_factor)

    def save(self, folder: Path) -> None:
        """Write a diffusers pipeline folder that holds today's weights."""
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self._tower,
            tokenizer=self.tokenizer,
            unet=self.denoiser,
            scheduler=self._scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder)
