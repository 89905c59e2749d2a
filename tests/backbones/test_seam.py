import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model

from erasure_lightning.backbones.conditioning import (
    CONCEPT,
    END,
    PADDING,
    START,
    TEMPLATE,
    concept_span,
)
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import (
    TINY_BACKBONES,
    TinyBackbone,
    TinyFlux,
    TinyPixArt,
    TinySD3,
    TinyXL,
)
from erasure_lightning.concepts.concept import fill_template
from erasure_lightning.diffusion.sampling import sample_images, sample_latents
from erasure_lightning.errors import ErasureError


@pytest.fixture(params=["epsilon", "velocity"])
def either(request):
    return TinyBackbone(prediction=request.param)


@pytest.fixture
def folder(tiny, tmp_path):
    tiny.to_pipeline().save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def stock(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_sampling_equals_the_stock_pipeline_bit_for_bit(either, tmp_path, guidance):
    either.to_pipeline().save_pretrained(tmp_path)
    pipeline = stock(tmp_path)
    loaded = load_backbone(str(tmp_path))
    prompts = ["a cat", "a photo of a dog"]
    seeds = [3, 4]
    theirs = pipeline(
        prompts,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=loaded.noise(seeds),
        output_type="latent",
    ).images
    # One pipeline's own modules against the other's: weights mapped elsewhere in memory may round
    # differently.
    loaded.denoiser = pipeline.unet
    loaded.text_encoders[0].model = pipeline.text_encoder
    assert torch.equal(sample_latents(loaded, prompts, seeds, steps=4, guidance=guidance), theirs)


def test_input_embeddings_reproduce_the_tokenised_forward(tiny):
    tower = tiny.towers[0]
    ids = tower.tokenizer(["a photo of a cat"], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(tiny.encode(["a photo of a cat"]).tokens, tower.model(ids).last_hidden_state)


def test_roles_tell_template_concept_and_padding_apart(tiny):
    (embedded,) = tiny.embed([fill_template("a photo of a {} car", "zoo cat"), "dog"])
    words = [START, *[TEMPLATE] * 4, *[CONCEPT] * 4, TEMPLATE, END]
    assert embedded.roles[0].tolist() == words + [PADDING] * (16 - len(words))
    assert embedded.roles[1].tolist() == [START, TEMPLATE, END] + [PADDING] * 13
    assert concept_span(embedded.roles).tolist() == [[5, 9], [0, 0]]
    assert embedded.ends.tolist() == [10, 2]


def test_summaries_need_no_padding(tiny):
    embedded = tiny.embed(["a cat", "a photo of a dog in a house"])
    whole = tiny.contextualize(embedded).tokens[torch.arange(2), embedded[0].ends]
    assert tiny.shortened(embedded)[0].ids.shape[1] == 10
    assert torch.allclose(tiny.summarize(embedded), whole, atol=1e-6)


def test_a_concept_behind_the_last_token_is_refused(tiny):
    with pytest.raises(ErasureError, match=r"reads 16 tokens; found 'cat' behind the last"):
        tiny.embed([fill_template("abcdefghijklmnopqrstuvwxyz a {}", "cat")])


def test_text_layers_and_text_parameters(tiny):
    assert all(n.endswith(("attn2.to_k", "attn2.to_v")) for n in tiny.text_layers())
    assert len(tiny.text_layers()) == 2 * 4
    everything = tiny.text_parameters()
    last = tiny.text_parameters(1)
    assert not any("embedding" in n for n in everything)
    assert {n.partition("layers.")[2][0] for n in last if "layers" in n} == {"1"}
    assert set(tiny.text_parameters(0)) == {n for n in everything if "final_layer_norm" in n}
    assert set(everything) <= set(dict(tiny.named_parameters()))


def test_parts_of_the_denoiser(tiny):
    parts = {part: set(tiny.denoiser_parameters(part)) for part in ("x", "x-strict", "u", "all")}
    assert parts["x"] == set(tiny.cross_attention_parameters())
    assert parts["x-strict"] == {f"{name}.weight" for name in tiny.text_layers()}
    assert {n.partition("attn2.")[2] for n in parts["x"]} == {
        *("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")
    }
    assert parts["x"].isdisjoint(parts["u"])
    assert parts["x"] | parts["u"] == parts["all"] == set(tiny.denoiser_parameters())
    assert parts["all"] == {n for n, _ in tiny.named_parameters() if n.startswith("denoiser.")}


class TestOriginal:
    def test_stays_while_the_model_changes(self, tiny):
        copy = tiny.frozen_copy(tiny.text_parameters(1))
        before = tiny.encode(["a cat"]).tokens.clone()
        assert torch.equal(copy.encode(["a cat"]).tokens, before)
        with torch.no_grad():
            for parameter in tiny.text_parameters(1).values():
                parameter.add_(0.1)
        assert torch.equal(copy.encode(["a cat"]).tokens, before)
        assert not torch.allclose(tiny.encode(["a cat"]).tokens, before)

    def test_costs_a_copy_of_the_edited_parameters_and_no_more(self, tiny):
        edited = tiny.text_parameters(1)
        copy = tiny.frozen_copy(edited)
        shared = {id(p) for p in tiny.parameters()}
        own = [p for p in copy.parameters() if id(p) not in shared]
        assert sum(p.numel() for p in own) == sum(p.numel() for p in edited.values())
        assert copy.denoiser is tiny.denoiser
        assert not any(p.requires_grad for p in own)

    def test_is_the_teacher_of_a_lora_edit_too_without_a_second_weight(self, tiny):
        x = torch.randn(1, 4, 8, 8)
        t = torch.tensor([500])
        conditioning = tiny.encode(["a cat"])
        before = tiny.denoise(x, t, conditioning)
        copy = tiny.frozen_copy(list(tiny.text_layers()))
        config = LoraConfig(
            r=2, target_modules=["attn2.to_k", "attn2.to_v"], init_lora_weights=False
        )
        inject_adapter_in_model(config, tiny.denoiser, "erase")
        assert torch.equal(copy.denoise(x, t, conditioning), before)
        assert not torch.allclose(tiny.denoise(x, t, conditioning), before, atol=1e-3)
        assert {id(p) for p in copy.parameters()} <= {id(p) for p in tiny.parameters()}


def test_a_seed_means_the_same_noise_in_any_batch(tiny):
    assert torch.equal(tiny.noise([7])[0], tiny.noise([1, 7, 3])[1])
    alone, among = (
        sample_images(tiny, ["a cat"] * n, s, steps=2, guidance=2.0)
        for n, s in ((1, [7]), (3, [1, 7, 3]))
    )
    assert torch.allclose(alone[0], among[1], atol=1e-5)


class TestCompress:
    def test_images_become_latents_of_the_models_shape(self, tiny):
        images = torch.rand(2, 3, 16, 16)
        assert tiny.compress(images).shape == (2, *tiny.latent_shape())
        assert torch.equal(tiny.compress(images), tiny.compress(images))

    def test_decoding_undoes_it(self):
        pytest.importorskip("erasure_lightning_emoji_world")
        world = load_backbone("emoji-world")
        images = sample_images(world, ["a fox", "a guitar"], [10, 11], steps=20, guidance=4.0)
        there_and_back = world.decode(world.compress(images))
        assert (there_and_back - images).abs().mean() < 0.02
        assert (there_and_back - images.flip(0)).abs().mean() > 0.1  # the control: another image


def test_size_must_fit_the_autoencoder(tiny):
    assert tiny.noise([0], size=32).shape == (1, 4, 16, 16)
    with pytest.raises(ErasureError, match="multiple of 2 pixels; found 33"):
        tiny.noise([0], size=33)


class TestLoading:
    def test_a_folder_gives_the_same_images(self, tiny, folder):
        loaded = load_backbone(str(folder))
        a, b = (sample_images(m, ["a cat"], [0], steps=2, guidance=2.0) for m in (tiny, loaded))
        assert torch.allclose(a, b, atol=1e-5)
        assert not any(p.requires_grad for p in loaded.parameters())
        assert loaded.fingerprint() == tiny.fingerprint() != TinyBackbone(seed=1).fingerprint()

    def test_nothing_there(self):
        with pytest.raises(
            ErasureError, match="'./nowhere' was not found: it is no installed world, no folder"
        ):
            load_backbone("./nowhere")

    def test_no_index(self, tmp_path):
        with pytest.raises(ErasureError, match="needs a model_index.json"):
            load_backbone(str(tmp_path))

    def test_another_family(self, folder):
        index = folder / "model_index.json"
        index.write_text(json.dumps({"_class_name": "KolorsPipeline"}))
        with pytest.raises(
            ErasureError, match="found KolorsPipeline. Known: StableDiffusionPipeline"
        ):
            load_backbone(str(folder))

    def test_pickles_are_refused(self, folder):
        (weights,) = (folder / "unet").glob("*.safetensors")
        weights.rename(weights.with_suffix(".bin"))
        with pytest.raises(
            ErasureError, match=r"needs weights as safetensors; found diffusion_pytorch_model.bin"
        ):
            load_backbone(str(folder))

    def test_another_prediction(self, folder):
        config = folder / "scheduler" / "scheduler_config.json"
        config.write_text(config.read_text().replace('"epsilon"', '"sample"'))
        with pytest.raises(ErasureError, match="predicts epsilon or v_prediction; found 'sample"):
            load_backbone(str(folder))

    def test_a_damaged_folder(self, folder):
        (folder / "vae" / "config.json").unlink()
        with pytest.raises(ErasureError, match=r"vae of .* needs .*config.json; found none"):
            load_backbone(str(folder))


@pytest.mark.parametrize("family", TINY_BACKBONES, ids=lambda family: family.__name__)
def test_places_of_adapters_are_two_and_others_are_refused(family):
    model = family()
    layers, attention = map(model.adaptable, ("transformer layers", "text attention"))
    assert layers
    assert attention
    assert not layers.keys() & attention.keys()
    with pytest.raises(ErasureError) as error:
        model.adaptable("text-attention")
    assert str(error.value) == (
        f"{model.name} needs one of transformer layers, text attention as place; found"
        " 'text-attention'. Did you mean 'text attention'?"
    )


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (TinyBackbone, (50, 7.5)),
        (TinyXL, (50, 5.0)),
        (TinySD3, (28, 7.0)),
        (TinyFlux, (28, 3.5)),
        (partial(TinyFlux, guidance_embeds=False), (4, 1.0)),  # FLUX.1-schnell
        (TinyPixArt, (20, 4.5)),
    ],
    ids=str,
)
def test_images_are_generated_as_by_the_stock_pipeline_unless_a_world_says_otherwise(
    family, expected
):
    model = family()
    assert model.default_sampling == expected
    model.world = SimpleNamespace(steps=9, guidance=2.0)
    assert model.default_sampling == (9, 2.0)
