"""Stable Diffusion 3: equal to the stock pipeline, and read where the model reads."""

import json
from copy import deepcopy

import diffusers
import pytest
import torch

from erasure_lightning import apply_edit, erase, methods
from erasure_lightning.backbones.conditioning import CONCEPT, END, MISSING, PADDING, START, TEMPLATE
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.stable_diffusion_3 import StableDiffusion3
from erasure_lightning.backbones.tiny import TinySD3
from erasure_lightning.concepts.concept import Concept, Phrase
from erasure_lightning.diffusion.sampling import sample_latents
from erasure_lightning.errors import ErasureError
from erasure_lightning.testing import check_method
from erasure_lightning.training.trajectory_bank import TrajectoryBank

# Four: MKL rounds products of fewer rows otherwise on some processors.
PROMPTS = ["a cat", "a photo of a dog", "a star", "a photo of a hat"]
SEEDS = [3, 4, 5, 6]
TIME = torch.tensor(700.0)

euler = diffusers.FlowMatchEulerDiscreteScheduler

SCHEDULERS = {
    "a constant shift": euler(shift=3.0),
    "shifted by size": euler(use_dynamic_shifting=True),
    "Heun": diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
    "DPM-Solver": diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    ),
}


@pytest.fixture(scope="module")
def sd3():
    return TinySD3()


@pytest.fixture(scope="module")
def without_t5():
    return TinySD3(t5=False)


def with_scheduler(model, scheduler):
    pipeline = model.to_pipeline()
    pipeline.scheduler = scheduler
    return StableDiffusion3.from_pipeline("sd3", pipeline)


def stock(model, *, steps=3, guidance=4.0, size=(None, None)):
    pipeline = model.to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=model.encode([""]).segments[1].stop - 16,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
    ).images


def predict(model, prompt, seeds=(1,)):
    x = model.noise(seeds)
    return model.denoise(x, TIME, model.encode([prompt]).expand(len(x)))


class TestLatentsEqualStock:
    @pytest.mark.parametrize("size", [(16, 16), (16, 32)])
    @pytest.mark.parametrize("steps", [2, 5])
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_at_every_size_and_schedule(self, sd3, name, steps, size):
        model = with_scheduler(sd3, SCHEDULERS[name])
        ours = sample_latents(model, PROMPTS, SEEDS, steps=steps, guidance=4.0, size=size)
        assert torch.equal(ours, stock(model, steps=steps, size=size))

    @pytest.mark.parametrize("guidance", [1.0, 4.0])
    @pytest.mark.parametrize("settings", [{}, {"t5": False}, {"dual_attention": True}], ids=str)
    def test_with_and_without_guidance_and_t5(self, settings, guidance):
        model = TinySD3(**settings)
        ours = sample_latents(model, PROMPTS, SEEDS, steps=3, guidance=guidance)
        assert torch.equal(ours, stock(model, guidance=guidance))

    def test_the_comparison_can_fail(self, sd3):
        """The control: another pooled vector of the unconditional prediction is another image."""
        conditioning = sd3.encode(PROMPTS)
        empty = sd3.unconditional()
        x = sd3.noise(SEEDS)
        replaced = empty.expand(4).where(torch.tensor([False] * 4), conditioning)
        replaced = replaced.with_tokens(empty.tokens.expand(4, -1, -1))
        ours = sd3.denoise(x, TIME, empty.expand(4))
        assert not torch.allclose(ours, sd3.denoise(x, TIME, replaced), atol=1e-3)

    def test_schedulers_of_diffusion_are_refused_in_one_line(self, sd3):
        for name in ("DDIMScheduler", "EulerDiscreteScheduler"):
            with pytest.raises(ErasureError, match=f"sd3 needs another sampler: {name}") as error:
                with_scheduler(sd3, getattr(diffusers, name)())
            assert "\n" not in str(error.value)

    def test_sizes_are_what_patches_and_positions_allow(self, sd3):
        assert sd3.latent_shape() == sd3.latent_shape(16) == (4, 8, 8)
        with pytest.raises(ErasureError, match="multiple of 4 pixels; found 18"):
            sd3.latent_shape((16, 18))
        with pytest.raises(ErasureError, match="at most 64 pixels, for which it has positions"):
            sd3.latent_shape((16, 68))

    def test_images_and_latents_are_inverse(self, sd3):
        """Up to the autoencoder, whose shift is not 0."""
        latents = sd3.noise([1])
        vae = sd3.to_pipeline().vae
        moved = latents / vae.config.scaling_factor + vae.config.shift_factor
        image = vae.decode(moved, return_dict=False)[0]
        assert torch.equal(sd3.decode(latents), (image / 2 + 0.5).clamp(0, 1))
        pixels = (image / 2 + 0.5).clamp(0, 1)
        mode = vae.encode(pixels * 2 - 1).latent_dist.mode()
        expected = (mode - vae.config.shift_factor) * vae.config.scaling_factor
        assert torch.equal(sd3.compress(pixels), expected)


class TestConditioning:
    def test_clips_are_joined_and_padded_and_t5_follows(self, sd3):
        embedded = sd3.embed(PROMPTS)
        states = [
            tower.model(e.ids, output_hidden_states=True).hidden_states[-2]
            for tower, e in zip(sd3.towers[:2], embedded, strict=False)
        ]
        t5 = sd3.towers[2].model(embedded[2].ids).last_hidden_state
        conditioning = sd3.encode(PROMPTS)
        assert conditioning.segments == (slice(0, 16), slice(16, 36))
        clip = conditioning.tokens[:, :16]
        assert torch.equal(clip[:, :, :16], torch.cat(states, dim=2))
        assert not clip[:, :, 16:].any()
        assert torch.equal(conditioning.tokens[:, 16:], t5)

    def test_both_projected_states_are_pooled(self, sd3):
        both = zip(sd3.towers[:2], sd3.embed(PROMPTS), strict=False)
        pooled = [tower.model(embedded.ids).text_embeds for tower, embedded in both]
        assert torch.equal(sd3.encode(PROMPTS).pooled, torch.cat(pooled, dim=1))

    def test_roles_and_ids_are_those_of_each_segment(self, sd3):
        prompts = [Phrase("a cat", 2, 5), ""]
        conditioning = sd3.encode(prompts)
        roles = conditioning.roles
        assert roles[0, :5].tolist() == [START, TEMPLATE, CONCEPT, END, PADDING]
        assert roles[0, 16:20].tolist() == [TEMPLATE, CONCEPT, END, PADDING]
        assert roles[1, 16:18].tolist() == [END, PADDING]
        clip, _, t5 = sd3.embed(prompts)
        assert torch.equal(conditioning.ids, torch.cat((clip.ids, t5.ids), dim=1))
        assert conditioning.reads_concept()[0].nonzero().flatten().tolist() == [
            *range(2, 16),
            *range(16, 36),  # T5 is not causal
        ]

    def test_zeros_that_no_concept_reaches_are_in_place_of_a_missing_t5(self, without_t5):
        conditioning = without_t5.encode([Phrase("a cat", 2, 5)])
        assert conditioning.tokens.shape == (1, 16 + 256, 24)
        assert not conditioning.tokens[:, 16:].any()
        assert (conditioning.roles[:, 16:] == MISSING).all()
        assert conditioning.reads_concept()[0].nonzero().flatten().tolist() == [*range(2, 16)]
        assert conditioning.around_concept()[0].nonzero().flatten().tolist() == [*range(3, 16)]

    def test_t5_reads_256_tokens_at_most(self, sd3):
        pipeline = sd3.to_pipeline()
        tokenizer = deepcopy(pipeline.tokenizer_3)
        tokenizer.model_max_length = 512
        pipeline.tokenizer_3 = tokenizer
        assert StableDiffusion3.from_pipeline("sd3", pipeline).towers[2].length == 256

    def test_similarity_is_the_mean_of_the_towers(self, sd3):
        a, b = sd3.encode(PROMPTS[:2]).summary
        parts = zip(a.split([12, 20, 24]), b.split([12, 20, 24]), strict=True)
        each = [torch.cosine_similarity(one, other, dim=0) for one, other in parts]
        whole = torch.cosine_similarity(a, b, dim=0)
        torch.testing.assert_close(whole, torch.stack(each).mean())

    def test_no_prompt_has_no_pooled_vector_of_a_concept(self, sd3):
        empty = sd3.unconditional(2)
        assert torch.equal(empty.pooled[1:], sd3.encode([""]).pooled)
        assert torch.equal(empty.tokens[1:], sd3.encode([""]).tokens)


class TestParts:
    def test_closed_forms_solve_for_the_entries_alone(self, sd3):
        tokens, pooled = sd3.text_inputs()
        assert list(tokens.layers) == ["denoiser.context_embedder"]
        assert list(pooled.layers) == ["denoiser.time_text_embed.text_embedder.linear_1"]
        assert (tokens.width, pooled.width) == (24, 32)
        both = sd3.encode(PROMPTS)
        assert tokens.rows(both).shape == (4, 36, 24)
        assert pooled.rows(both).shape == (4, 1, 32)
        assert set(sd3.denoiser_parameters("entry")) == {
            f"{name}.{kind}"
            for name in (*tokens.layers, *pooled.layers)
            for kind in ("weight", "bias")
        }

    @pytest.mark.parametrize("dual", [False, True])
    def test_text_keys_and_values_are_the_added_ones(self, dual):
        assert set(TinySD3(dual_attention=dual).text_attention()) == {
            f"denoiser.transformer_blocks.{block}.attn.{layer}"
            for block in (0, 1)
            for layer in ("add_k_proj", "add_v_proj")
        }

    def test_the_attention_of_the_image_alone_is_in_no_part_of_the_text(self):
        """SD 3.5 medium names it ``attn2``, as Stable Diffusion names its cross-attention."""
        model = TinySD3(dual_attention=True)
        parts = {p: set(model.denoiser_parameters(p)) for p in ("x", "x-strict", "u", "entry")}
        of_image = {name for name in model.denoiser_parameters() if ".attn2." in name}
        assert len(of_image) == 10
        assert of_image <= parts.pop("u")
        assert not of_image & set.union(*parts.values())

    def test_joint_attention_and_the_rest_are_all(self, sd3):
        x, u = (set(sd3.denoiser_parameters(part)) for part in ("x", "u"))
        assert x | u == set(sd3.denoiser_parameters())
        assert not x & u
        kinds = {name.split(".attn.")[1].split(".")[0] for name in x}
        assert {"to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"} <= kinds

    @pytest.mark.parametrize("dual", [False, True])
    def test_what_is_trained_reaches_a_prediction(self, dual):
        """All but the last block's queries of the text, whose states the model drops."""
        model = TinySD3(dual_attention=dual).requires_grad_(True)
        predict(model, "a cat", SEEDS).square().sum().backward()
        reached = {
            name
            for name, parameter in model.named_parameters()
            if name.startswith("denoiser.")
            and parameter.grad is not None
            and parameter.grad.abs().sum() > 0
        }
        trained = set(model.denoiser_parameters())
        assert reached == trained
        dropped = {n for n, _ in model.named_parameters() if n.startswith("denoiser.")} - trained
        assert {name.split(".attn.")[1] for name in dropped} == {
            *("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")
        }
        layers = {f"{n}.weight" for n in model.adaptable("transformer layers")}
        assert layers <= trained
        assert "denoiser.transformer_blocks.0.attn.add_q_proj.weight" in layers

    @pytest.mark.parametrize("blocks", [None, 1])
    def test_what_is_trained_of_the_towers_is_read(self, blocks):
        model = TinySD3()
        trained = model.text_parameters(blocks)
        assert {name.split(".")[1] for name in trained} == {"0", "1", "2"}
        for parameter in trained.values():
            parameter.requires_grad_(True)
        conditioning = model.encode(PROMPTS)
        loss = conditioning.tokens.square().sum() + conditioning.pooled.square().sum()
        loss.backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0
            for name, p in trained.items()
            if "k_proj.bias" not in name
        )


def test_a_frozen_copy_stays_while_the_model_changes():
    model = TinySD3()
    edited = model.denoiser_parameters("entry") | model.text_parameters(1)
    copy = model.frozen_copy(edited)
    before = predict(model, "a cat")
    assert torch.equal(predict(copy, "a cat"), before)
    with torch.no_grad():
        for parameter in edited.values():
            parameter.add_(0.1)
    assert torch.equal(predict(copy, "a cat"), before)
    assert not torch.allclose(predict(model, "a cat"), before, atol=1e-3)
    assert copy.vae is model.vae


class TestFolder:
    @pytest.mark.parametrize("t5", [True, False])
    def test_is_read_back(self, t5, tmp_path):
        model = TinySD3(t5=t5)
        model.save(tmp_path)
        loaded = load_backbone(str(tmp_path))
        assert isinstance(loaded, StableDiffusion3)
        assert len(loaded.towers) == 2 + t5
        assert loaded.fingerprint() == model.fingerprint()
        assert torch.equal(predict(loaded, "a cat"), predict(model, "a cat"))
        assert loaded.sampling_fingerprint == model.sampling_fingerprint

    @pytest.mark.parametrize("weights", ["text encoders", "none"])
    def test_is_read_in_part(self, sd3, tmp_path, weights):
        sd3.save(tmp_path)
        loaded = load_backbone(str(tmp_path), weights=weights)
        shapes = {name: p.shape for name, p in loaded.named_parameters()}
        assert shapes == {name: p.shape for name, p in sd3.named_parameters()}
        assert any(p.is_meta for p in loaded.denoiser.parameters()) == (weights != "none")

    def test_without_t5_needs_no_tokenizer_of_it(self, sd3, tmp_path):
        """The weights are not read either, as where a user has struck them out of the index."""
        sd3.save(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        index["text_encoder_3"] = [None, None]
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        assert len(load_backbone(str(tmp_path)).towers) == 2

    @pytest.mark.parametrize("name", ["tokenizer_3", "text_encoder_2", "vae"])
    def test_what_is_not_optional_is_missed_in_one_line(self, sd3, tmp_path, name):
        sd3.save(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        index[name] = [None, None]
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ErasureError, match=f"a library and a class for its {name}; found"):
            load_backbone(str(tmp_path))

    @pytest.mark.parametrize(
        ("settings", "problem"),
        [
            ({"joint_attention_dim": 32}, r"width 32 \(joint_attention_dim\); found text encoders"),
            ({"pooled_projection_dim": 20}, r"width 20 \(pooled_projection_dim\); found text"),
            ({"in_channels": 16}, "needs as many in_channels as the vae has latent_channels"),
        ],
    )
    def test_of_different_models_is_refused(self, sd3, tmp_path, settings, problem):
        sd3.save(tmp_path)
        other = type(sd3.denoiser).from_config(sd3.denoiser.config, **settings)
        other.save_pretrained(tmp_path / "transformer")
        with pytest.raises(ErasureError, match=problem):
            load_backbone(str(tmp_path))

    def test_of_clips_that_are_too_wide_is_refused(self, without_t5, tmp_path):
        without_t5.save(tmp_path)
        other = type(without_t5.denoiser).from_config(
            without_t5.denoiser.config, joint_attention_dim=12
        )
        other.save_pretrained(tmp_path / "transformer")
        with pytest.raises(ErasureError, match=r"at most 12 channels .* found 16 of text_encoder"):
            load_backbone(str(tmp_path))


@pytest.mark.parametrize("t5", [True, False])
def test_an_edit_of_a_pipeline_is_saved_applied_and_removed(t5, tmp_path):
    model = TinySD3(t5=t5)
    before = {prompt: predict(model, prompt) for prompt in ("a cat", "a dog", "a boat")}
    settings = {"retain": ["a boat"], "ridge": 1e-3, "progress_bar": False}
    edit = erase(model.to_pipeline(), "cat", method="UCE", anchor="dog", **settings)
    after = {prompt: predict(model, prompt) for prompt in before}
    moved = (after["a cat"] - before["a cat"]).square().mean()
    apart = (before["a cat"] - before["a dog"]).square().mean()
    assert (after["a cat"] - before["a dog"]).square().mean() < 0.8 * apart
    assert (after["a boat"] - before["a boat"]).square().mean() < 0.01 * moved
    edit.save(tmp_path / "edit.safetensors")
    edit.remove()
    assert all(torch.equal(predict(model, prompt), value) for prompt, value in before.items())
    again = TinySD3(t5=t5)
    apply_edit(tmp_path / "edit.safetensors", again.to_pipeline())
    assert all(torch.equal(predict(again, prompt), value) for prompt, value in after.items())


#: Methods that need attention of the text apart from that of pixels.
REFUSED = {"AdaVD", "GLoCE", "TRCE"}


def test_a_bank_s_early_and_late_steps_are_a_flow_s():
    """The rest of every method's contract is checked by its own tests."""
    latents = TrajectoryBank(trajectories=2, steps=2)
    settings = {"thorough": False, "world": None, "maps": 1, "latents": latents}
    check_method(methods.ANT, families=[TinySD3], **settings)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_method_that_needs_cross_attention_is_refused_in_one_line(sd3, name):
    module = getattr(methods, name)(concepts=[Concept("cat", "dog")], backbone=sd3)
    with pytest.raises(ErasureError, match="cross-attention") as error:
        module.configure_model()
    assert "\n" not in str(error.value)
