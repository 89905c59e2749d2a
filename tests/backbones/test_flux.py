"""FLUX.1 through the seam: equal to the stock pipeline, and read where the model reads."""

from functools import partial

import diffusers
import pytest
import torch

from erasure_lightning import erase
from erasure_lightning.backbones.conditioning import CONCEPT, END, PADDING, TEMPLATE
from erasure_lightning.backbones.flux import Flux, _pack, _unpack
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.process import RectifiedFlow
from erasure_lightning.backbones.tiny import TinyFlux
from erasure_lightning.concepts.concept import Concept, Phrase
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.diffusion.inversion import invert, retrace
from erasure_lightning.diffusion.sampling import rollout, sample_latents
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.esd import ESD
from erasure_lightning.testing import quick_fit

PROMPTS = ["a cat", "a photo of a dog"]
SEEDS = [3, 4]
euler = diffusers.FlowMatchEulerDiscreteScheduler


@pytest.fixture(scope="module")
def flux():
    return TinyFlux()


def with_scheduler(model, scheduler):
    pipeline = model.to_pipeline()
    pipeline.scheduler = scheduler
    pipeline.default_sample_size = 8
    return Flux.from_pipeline("flux", pipeline)


def stock(model, *, size=(16, 16), steps=3, **settings):
    pipeline = model.to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        PROMPTS,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        max_sequence_length=model.towers[1].length,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
        **settings,
    ).images
    return _unpack(latents, size[0] // 2, size[1] // 2)


SCHEDULERS = {
    "shifted by size": euler(use_dynamic_shifting=True),
    "shift 3": euler(shift=3.0),
    "karras": euler(use_karras_sigmas=True),
}


class TestLatentsEqualStock:
    @pytest.mark.parametrize("size", [(16, 16), (32, 16)])
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_at_every_size_and_schedule(self, flux, name, size):
        model = with_scheduler(flux, SCHEDULERS[name])
        ours = sample_latents(model, PROMPTS, SEEDS, steps=4, guidance=3.5, size=size)
        assert torch.equal(ours, stock(model, size=size, steps=4, guidance_scale=3.5))

    def test_without_embedded_guidance(self):
        """As FLUX.1-schnell, which has no guidance; above 1 it is the true one."""
        schnell = TinyFlux(guidance_embeds=False)
        plain = sample_latents(schnell, PROMPTS, SEEDS, steps=3, guidance=1.0)
        assert torch.equal(plain, stock(schnell))
        guided = sample_latents(schnell, PROMPTS, SEEDS, steps=3, guidance=4.0)
        true = stock(schnell, true_cfg_scale=4.0, negative_prompt=["", ""])
        torch.testing.assert_close(guided, true, atol=1e-5, rtol=1e-5)  # one batch of two or two

    def test_the_comparison_can_fail(self, flux):
        """The control: another size shifts the times otherwise."""
        model = with_scheduler(flux, SCHEDULERS["shifted by size"])
        ours = sample_latents(model, PROMPTS, SEEDS, steps=4, guidance=3.5, size=32)
        sampler = partial(model.sampler, size=16)
        model.sampler = lambda steps, size=None: sampler(steps)
        other = sample_latents(model, PROMPTS, SEEDS, steps=4, guidance=3.5, size=32)
        assert not torch.allclose(ours, other, atol=1e-3)

    def test_a_scheduler_of_diffusion_is_refused(self, flux):
        with pytest.raises(ErasureError, match="needs another sampler: DDIMScheduler"):
            with_scheduler(flux, diffusers.DDIMScheduler())

    def test_images_and_latents_are_inverse(self, flux):
        """Up to the autoencoder, whose shift is not 0."""
        latents = flux.noise([1])
        vae = flux.to_pipeline().vae
        moved = latents / vae.config.scaling_factor + vae.config.shift_factor
        image = vae.decode(moved, return_dict=False)[0]
        assert torch.equal(flux.decode(latents), (image / 2 + 0.5).clamp(0, 1))
        mode = vae.encode(image).latent_dist.mode()
        expected = (mode - vae.config.shift_factor) * vae.config.scaling_factor
        torch.testing.assert_close(flux.compress(image / 2 + 0.5), expected)


class TestConditioning:
    def test_roles_of_t5(self, flux):
        roles = flux.encode([Phrase("a cat", 2, 5), ""]).roles
        assert roles[0, :4].tolist() == [TEMPLATE, CONCEPT, END, PADDING]
        assert roles[1, :2].tolist() == [END, PADDING]

    def test_no_prompt_has_no_pooled_vector_of_a_concept(self, flux):
        empty = flux.unconditional()
        assert torch.equal(empty.pooled, flux.encode([""]).pooled)
        assert not torch.allclose(empty.pooled, flux.encode(["a cat"]).pooled, atol=1e-3)

    def test_words_of_t5_are_whole(self, flux):
        tower = flux.towers[1]
        assert [tower.spell(i) for i in tower.words()[:, None]][:3] == ["a", "an", "the"]

    def test_what_is_behind_the_last_token_is_named(self, flux):
        assert flux.too_long(["a cat", "a zzzz zzzz zzzz zzzz zzzz"]) == [
            "a zzzz zzzz zzzz zzzz zzzz"
        ]

    def test_schnell_reads_fewer_tokens_than_dev(self, flux):
        pipeline = flux.to_pipeline()
        pipeline.tokenizer_2.model_max_length = 512
        lengths = []
        for embeds in (True, False):
            pipeline.transformer = TinyFlux(guidance_embeds=embeds).denoiser
            lengths.append(Flux.from_pipeline("flux", pipeline).towers[1].length)
        pipeline.tokenizer_2.model_max_length = 20
        assert lengths == [512, 256]


class TestPredictions:
    def test_guidance_is_1_unless_it_is_sampled_with(self, flux):
        x, t = flux.noise(SEEDS), torch.tensor(500.0)
        cat = flux.encode(PROMPTS)
        assert torch.equal(flux.denoise(x, t, cat), flux.denoise(x, t, cat, 1.0))
        assert not torch.allclose(flux.denoise(x, t, cat), flux.denoise(x, t, cat, 3.5))
        first = next(rollout(flux, cat, SEEDS, steps=2, guidance=3.5))
        assert torch.equal(first.conditional, flux.denoise(first.x, first.t, cat, 3.5))

    def test_evaluations_are_counted(self, flux):
        with EvaluationCounter([flux.denoiser]) as counter:
            sample_latents(flux, PROMPTS, SEEDS, steps=3, guidance=3.5)
        assert counter.evaluations == 2 * 3

    def test_packing_is_undone(self):
        x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
        assert torch.equal(_unpack(_pack(x), 4, 6), x)
        assert _pack(x).shape == (2, 6, 12)

    def test_inversion_comes_back(self, flux):
        cat = flux.encode(PROMPTS)
        x0 = sample_latents(flux, PROMPTS, SEEDS, steps=8, guidance=1.0)
        noise = invert(flux, cat, x0, steps=8, refinements=8)
        back = retrace(flux, cat, noise, steps=8)
        torch.testing.assert_close(back, x0, atol=1e-3, rtol=1e-3)
        assert (noise - x0).square().mean() > 0.1


class TestParts:
    def test_closed_forms_solve_for_the_entries_alone(self, flux):
        tokens, pooled = flux.text_inputs()
        assert list(tokens.layers) == ["denoiser.context_embedder"]
        assert list(pooled.layers) == ["denoiser.time_text_embed.text_embedder.linear_1"]
        assert (tokens.width, pooled.width) == (24, 32)
        assert set(flux.denoiser_parameters("entry")) == {
            f"{name}.{kind}"
            for name in (*tokens.layers, *pooled.layers)
            for kind in ("weight", "bias")
        }

    def test_text_keys_and_values_are_the_added_ones(self, flux):
        names = {name.rpartition(".")[2] for name in flux.text_attention()}
        assert names == {"add_k_proj", "add_v_proj"}

    def test_joint_attention_and_the_rest_are_all(self, flux):
        whole = set(flux.denoiser_parameters())
        x, u = (set(flux.denoiser_parameters(part)) for part in ("x", "u"))
        assert x | u == whole
        assert not x & u
        kinds = {name.split(".attn.")[1].split(".")[0] for name in x}
        assert {"to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"} <= kinds

    def test_text_parameters_count_from_the_last_block(self, flux):
        names = set(flux.text_parameters(1))
        assert {name.split(".")[1] for name in names} == {"0", "1"}
        assert any(".block.1." in name for name in names)
        assert not any(".block.0." in name or "shared" in name for name in names)


def test_a_folder_is_read_back(flux, tmp_path):
    flux.save(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert isinstance(loaded, Flux)
    assert loaded.fingerprint() == flux.fingerprint()
    x, t = flux.noise(SEEDS), torch.tensor(300.0)
    assert torch.equal(
        loaded.denoise(x, t, loaded.encode(PROMPTS)), flux.denoise(x, t, flux.encode(PROMPTS))
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"joint_attention_dim": 32},
            r"width 32 \(joint_attention_dim\); found text",
        ),
        ({"in_channels": 64}, "needs 4 times as many in_channels as the vae has latent_channels"),
    ],
)
def test_parts_of_different_models_are_refused(flux, tmp_path, settings, problem):
    flux.save(tmp_path)
    pipeline = flux.to_pipeline()
    diffusers.FluxTransformer2DModel.from_config(
        pipeline.transformer.config, **settings
    ).save_pretrained(tmp_path / "transformer")
    with pytest.raises(ErasureError, match=problem):
        load_backbone(str(tmp_path))


def test_erase_on_a_pipeline(flux):
    """The entry's output goes to the anchor's; how far a random T5 follows is chance."""
    pipeline = flux.to_pipeline()
    x, t = flux.noise([1]), torch.tensor(900.0)

    def predict(prompt):
        return flux.denoise(x, t, flux.encode([prompt]))

    def entry(prompt):
        layer = pipeline.transformer.time_text_embed.text_embedder.linear_1
        return layer(flux.encode([prompt]).pooled)

    before = {prompt: predict(prompt) for prompt in ("a cat", "a dog", "a boat")}
    cat, dog = entry("a cat"), entry("a dog")
    edit = erase(
        pipeline,
        "cat",
        method="UCE",
        anchor="dog",
        retain=["a boat"],
        templates=["a {}"],
        ridge=1e-4,
        progress_bar=False,
    )
    assert (entry("a cat") - dog).norm() < 0.5 * (cat - dog).norm()
    apart = (before["a cat"] - before["a dog"]).square().mean()
    assert (predict("a cat") - before["a dog"]).square().mean() < apart
    assert (predict("a boat") - before["a boat"]).square().mean() < 1e-4 * apart
    edit.remove()
    assert all(torch.equal(predict(prompt), value) for prompt, value in before.items())


class TestRectifiedFlow:
    process = RectifiedFlow()
    t = torch.tensor([100.0, 500.0, 999.0])

    def test_predictions_and_latents_agree(self):
        x0, n = torch.randn(2, 3, 4, 2, 2)
        x = self.process.noise(x0, n, self.t)
        v = self.process.target(x0, n, self.t)
        for ours, expected in (
            (self.process.clean(v, x, self.t), x0),
            (self.process.epsilon(v, x, self.t), n),
            (self.process.noise_in(x, x0, self.t), n),
        ):
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(("space", "convert"), [("epsilon", "epsilon"), ("sample", "clean")])
    def test_scale_of_errors(self, space, convert):
        x, v, w = torch.randn(3, 3, 4, 2, 2)
        to = getattr(self.process, convert)
        error = (to(v, x, self.t) - to(w, x, self.t)).abs()
        scale = self.process.error_scale(space, self.t).view(-1, 1, 1, 1)
        torch.testing.assert_close(error, scale * (v - w).abs(), atol=1e-5, rtol=1e-4)

    def test_times_are_above_0_and_follow_a_density(self):
        t = self.process.draw_times(5000)
        assert t.min() > 0
        assert t.max() <= 1000
        late = self.process.draw_times(5000, lambda share: (share > 0.8).float())
        assert late.min() >= 800


def test_images_of_another_size_are_trained_on():
    module = ESD(concepts=[Concept("cat")], backbone=TinyFlux(), image_size=32)
    quick_fit(module, 1)
    assert module.noisy_batch(module.prompts.batch(1, 0, 0)).x.shape == (1, 4, 16, 16)
    with pytest.raises(ErasureError, match="multiple of 4 pixels; found 15"):
        quick_fit(ESD(concepts=[Concept("cat")], backbone=TinyFlux(), image_size=15), 1)
