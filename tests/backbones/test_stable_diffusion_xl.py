"""Stable Diffusion XL through the seam: equal to the stock pipeline, and read where the model
reads.
"""

import diffusers
import pytest
import torch

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.stable_diffusion import StableDiffusion
from erasure_lightning.backbones.tiny import TinyBackbone, TinyXL
from erasure_lightning.diffusion.sampling import sample_latents
from erasure_lightning.errors import ErasureError

SAMPLERS = ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"]
SAMPLERS += ["EulerAncestralDiscreteScheduler"]
# Four: MKL rounds products of fewer rows otherwise on some processors.
PROMPTS = ["a cat", "a photo of a dog", "a star", "a photo of a hat"]
SEEDS = [3, 4, 5, 6]


@pytest.fixture(scope="module")
def xl():
    return TinyXL()


def with_sampler(model, name):
    pipeline = model.to_pipeline()
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    return type(model).__mro__[1].from_pipeline("xl", pipeline)


def stock(model, *, steps=3, guidance=4.0, height=None, width=None):
    pipeline = model.to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return pipeline(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        output_type="latent",
        height=height,
        width=width,
    ).images


class TestLatentsEqualStock:
    @pytest.mark.parametrize("size", [None, 32, (16, 32)])
    @pytest.mark.parametrize(
        "name",
        [
            "EulerDiscreteScheduler",
            "DDIMScheduler",
            "DPMSolverMultistepScheduler",
            "EulerAncestralDiscreteScheduler",
        ],
    )
    def test_at_every_size_and_sampler(self, xl, name, size):
        model = with_sampler(xl, name)
        height, width = (size, size) if isinstance(size, int) else size or (16, 16)
        ours = sample_latents(model, PROMPTS, SEEDS, steps=3, guidance=4.0, size=size)
        assert torch.equal(ours, stock(model, height=height, width=width))

    @pytest.mark.parametrize("zeros", [True, False])
    @pytest.mark.parametrize("guidance", [1.0, 4.0])
    def test_with_and_without_zeros_for_no_prompt(self, zeros, guidance):
        model = TinyXL(zero_unconditional=zeros, prediction="velocity")
        assert torch.equal(
            sample_latents(model, PROMPTS, SEEDS, steps=3, guidance=guidance),
            stock(model, guidance=guidance),
        )

    def test_the_comparison_can_fail(self):
        """The control: another reading of no prompt is another image."""
        ours = sample_latents(
            TinyXL(zero_unconditional=True), PROMPTS, SEEDS, steps=3, guidance=4.0
        )
        assert not torch.allclose(ours, stock(TinyXL(zero_unconditional=False)), atol=1e-3)

    def test_a_denoiser_that_takes_the_guidance_scale_is_given_it_and_predicts_once(self):
        """UNets of latent consistency models (B2-15); the stock pipelines neither guide them."""
        pipeline = TinyBackbone().to_pipeline()
        config = {k: v for k, v in pipeline.unet.config.items() if k != "_use_default_values"}
        config |= {"time_cond_proj_dim": 9}
        torch.manual_seed(0)
        pipeline.unet = diffusers.UNet2DConditionModel.from_config(config).eval()
        pipeline.scheduler = diffusers.LCMScheduler.from_config(pipeline.scheduler.config)
        model = StableDiffusion.from_pipeline("lcm", pipeline)
        assert model.embeds_guidance
        ours = sample_latents(model, PROMPTS, SEEDS, steps=3, guidance=7.0)
        assert torch.equal(ours, stock(model, guidance=7.0))
        assert not torch.allclose(
            ours, sample_latents(model, PROMPTS, SEEDS, steps=3, guidance=2.0), atol=1e-4
        )
        assert model.denoise(ours, torch.tensor(5.0), model.encode(PROMPTS)).shape == ours.shape


def test_a_folder_is_read_back(xl, tmp_path):
    TinyXL(zero_unconditional=False).save(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert (type(loaded).__name__, loaded.zero_unconditional) == ("StableDiffusionXL", False)
    ours, theirs = (
        sample_latents(m, PROMPTS, SEEDS, steps=2, guidance=3.0)
        for m in (loaded, TinyXL(zero_unconditional=False))
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_size_that_the_autoencoder_cannot_take_is_refused(xl):
    with pytest.raises(ErasureError, match="multiple of 2 pixels; found 33"):
        xl.latent_shape((32, 33))


class TestText:
    def test_both_towers_are_read_before_their_last_layer_and_without_its_norm(self, xl):
        prompts = xl.embed(PROMPTS)
        tokens = xl.encode(PROMPTS).tokens
        states = [
            tower.model(e.ids, output_hidden_states=True).hidden_states[-2]
            for tower, e in zip(xl.towers, prompts, strict=True)
        ]
        assert torch.equal(tokens, torch.cat(states, dim=2))

    @pytest.mark.parametrize("blocks", [None, 1, 2])
    def test_what_is_trained_is_what_is_read(self, blocks):
        model = TinyXL()
        trained = model.text_parameters(blocks)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        conditioning = model.encode(PROMPTS)
        loss = conditioning.tokens.square().sum() + conditioning.pooled.square().sum()
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        assert all(
            g is not None and g.abs().sum() > 0
            for n, g in zip(trained, gradients, strict=True)
            if "k_proj.bias" not in n
        )
        first = {
            int(n.split("encoder.layers.")[1].split(".")[0])
            for n in trained
            if n.startswith("text_encoders.0")
        }
        # Of three layers the last is not read.
        assert first == {None: {0, 1}, 1: {1}, 2: {0, 1}}[blocks]

    def test_no_prompt_is_zeros_or_the_empty_prompt(self):
        zeros, empty = (TinyXL(zero_unconditional=z).unconditional(2) for z in (True, False))
        assert len(zeros) == len(empty) == 2
        assert not zeros.tokens.any()
        assert not zeros.pooled.any()
        expected = TinyXL().encode([""])
        assert torch.equal(empty.tokens[1:], expected.tokens)
        assert torch.equal(empty.pooled[1:], expected.pooled)

    def test_the_pooled_vector_goes_wherever_the_tokens_go(self, xl):
        both = xl.encode(PROMPTS)
        joined = Conditioning.cat([both, xl.unconditional(1)])
        assert joined.pooled.shape == (5, 20)
        assert torch.equal(both.with_tokens(both.tokens * 2).pooled, both.pooled)
        assert torch.equal(both[:1].expand(3).pooled[2], both.pooled[0])
        with pytest.raises(ValueError, match="differ in segments or pooled"):
            Conditioning.cat([both, TinyBackbone().encode(PROMPTS)])

    def test_closed_forms_meet_the_tokens_and_the_pooled_vector(self, xl):
        tokens, pooled = xl.text_inputs()
        both = xl.encode(PROMPTS)
        assert tokens.rows(both).shape == (4, 16, tokens.width)
        assert pooled.rows(both).shape == (4, 1, pooled.width)
        assert tokens.width == 32 + 24
        assert pooled.width == 20
        (layer,) = pooled.layers.values()
        ((name, weight),) = pooled.named([torch.zeros(len(layer.weight), 20)]).items()
        assert name == "denoiser.add_embedding.linear_1.weight"
        assert not weight[:, :20].any()
        assert torch.equal(weight[:, 20:], layer.weight[:, 20:])  # what reads the sizes stays


def test_the_autoencoder_of_a_model_in_float16_computes_in_float32():
    """As in the stock pipeline: the published one overflows in float16."""
    half = TinyXL().half()
    rounded = TinyXL().half().float()
    images = torch.rand(1, 3, 16, 16)
    latents = half.compress(images)
    assert torch.equal(latents, rounded.compress(images))
    assert torch.equal(half.decode(latents), rounded.decode(latents))
    assert {p.dtype for p in half.vae.parameters()} == {torch.float16}
