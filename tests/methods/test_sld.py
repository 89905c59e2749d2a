"""SLD: the contract, diffusers' own pipeline of it, and rows with and without guidance."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionPipelineSafe
from recognition import KEPT, recognised, recognised_before
from shipped import numbers

from erasure_lightning import apply_edit, erase
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.tiny import TinyBackbone, TinyPixArt, TinySD3, TinyXL
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.sampling import sample_latents
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.sld import SLD
from erasure_lightning.testing import check_method, quick_fit

#: Official arguments, and ours: of ten steps the first three are warm-up.
OFFICIAL = {
    "sld_guidance_scale": 50,
    "sld_warmup_steps": 3,
    "sld_threshold": 0.03,
    "sld_momentum_scale": 0.4,
    "sld_mom_beta": 0.6,
}
OURS = {"scale": 50.0, "warmup": 0.35, "threshold": 0.03, "momentum": 0.4, "beta": 0.6}


def test_contract():
    """Without the world's promise: ``mu`` grows with the distance from the concept's prediction, so
    that single predictions for other things move no less.
    """
    check_method(SLD, world=None)


def rule(family=TinyBackbone, **arguments):
    concepts = [Concept("cat", "dog"), Concept("star")]
    return quick_fit(SLD(concepts=concepts, backbone=family(), **(OURS | arguments)), 1)


def images(pipeline, **arguments):
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 10, "guidance_scale": 4.0, "output_type": "np"}
    generator = torch.Generator().manual_seed(1)
    prompts = ["a cat in a house", "a tree"]
    drawn = pipeline(prompts, generator=generator, **settings, **arguments).images
    return torch.from_numpy(drawn)


@pytest.mark.parametrize(
    "negative",
    [None, ["a dog", "a dog"], ["", "a dog"], ["a dog", ""]],
    ids=["empty", "negative", "second", "first"],
)
def test_a_stock_pipeline_with_the_rule_draws_what_the_official_pipeline_draws(negative):
    parts = TinyBackbone().to_pipeline().components
    parts |= {"safety_checker": None, "feature_extractor": None}
    official = StableDiffusionPipelineSafe(**parts, requires_safety_checker=False)
    official.safety_concept = "an image showing cat, star"
    expected = images(official, negative_prompt=negative, **OFFICIAL)

    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    plain = images(pipeline, negative_prompt=negative)
    erase(pipeline, ["cat", "star"], method="SLD", progress_bar=False, **OURS)
    actual = images(pipeline, negative_prompt=negative)
    assert torch.allclose(actual, expected, atol=1e-5)
    assert (plain - expected).abs().max() > 1e-3  # the control
    without = images(official, negative_prompt=negative, **OFFICIAL | {"sld_momentum_scale": 0})
    assert (without - expected).abs().max() > 1e-4  # the momentum is seen


def test_edits_of_other_settings_are_not_each_other():
    pipelines = [TinyBackbone().to_pipeline() for _ in range(2)]
    strong, weak = (
        erase(pipeline, "cat", method="SLD", scale=scale, progress_bar=False)
        for pipeline, scale in zip(pipelines, (1000.0, 10.0), strict=True)
    )
    assert all(torch.equal(strong.tensors[name], weak.tensors[name]) for name in weak.tensors)
    assert strong.fingerprint != weak.fingerprint
    assert strong.apply(pipelines[0]).pipeline is pipelines[0]  # it is there already
    with pytest.raises(ErasureError, match=r"found those of another edit \(SLD of cat\)"):
        apply_edit(weak, pipelines[0])


@torch.no_grad()
def test_skip_layer_guidance_is_no_step_of_the_momentum():
    """Its prediction without some blocks has the time of the step's first one."""
    model = rule(TinySD3).backbone
    prompts = model.encode(["a cat"])
    states = {
        "encoder_hidden_states": prompts.tokens,
        "pooled_projections": prompts.pooled,
        "return_dict": False,
    }
    x = model.noise([0])

    def last_of_a_rollout(**second):
        for time in (900.0, 500.0, 100.0):
            (prediction,) = model.denoiser(hidden_states=x, timestep=torch.tensor([time]), **states)
            if second:
                other = {**states, **second}
                model.denoiser(hidden_states=x, timestep=torch.tensor([time]), **other)
        return prediction

    expected = last_of_a_rollout()
    assert torch.equal(last_of_a_rollout(skip_layers=[0]), expected)
    assert not torch.allclose(last_of_a_rollout(skip_layers=None), expected, atol=1e-4)  # a step


@pytest.mark.parametrize("family", [TinyBackbone, TinyXL])
@torch.no_grad()
def test_a_prompt_s_prediction_is_the_same_beside_the_empty_one_and_alone(family):
    module = rule(family)
    model = module.backbone
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(300.0)
    prompt = model.encode(["a cat"])
    alone = model.denoise(x, t, prompt)
    both = Conditioning.cat([model.unconditional(), prompt])
    unconditional, conditional = model.denoise(torch.cat([x, x]), t, both).split(1)
    assert torch.allclose(conditional, alone, atol=1e-5)
    assert torch.allclose(unconditional, module.original.denoise(x, t, both[:1]), atol=1e-6)
    assert not torch.allclose(alone, module.original.denoise(x, t, prompt), atol=1e-3)
    noisier = torch.tensor(900.0)  # in the warm-up
    expected = module.original.denoise(x, noisier, prompt)
    assert torch.equal(model.denoise(x, noisier, prompt), expected)


def test_an_image_is_the_same_beside_one_of_the_empty_prompt():
    pipeline = TinyBackbone().to_pipeline()
    erase(pipeline, "cat", method="SLD", progress_bar=False, **OURS)
    pipeline.set_progress_bar_config(disable=True)

    def drawn(prompts, negative):
        noise = [torch.Generator().manual_seed(1) for _ in prompts]
        settings = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "pt"}
        return pipeline(prompts, negative_prompt=negative, generator=noise, **settings).images

    both = drawn(["a cat", ""], ["a dog", "a tree"])
    assert torch.allclose(both[:1], drawn(["a cat"], ["a dog"]), atol=1e-4)
    assert not torch.allclose(both[:1], drawn(["a cat"], [""]), atol=1e-3)


def test_an_image_depends_on_its_seed_and_prompt_alone():
    model = rule().backbone
    arguments = {"steps": 6, "guidance": 4.0}
    both = sample_latents(model, ["a cat", "a tree"], [3, 4], **arguments)
    alone = sample_latents(model, ["a tree"], [4], **arguments)
    again = sample_latents(model, ["a cat", "a tree"], [3, 4], **arguments)
    assert torch.allclose(both[1:], alone, atol=1e-5)
    assert torch.equal(both, again)


def test_gradients_pass_the_rule():
    model = rule().backbone
    prompt = model.encode(["a cat"])
    tokens = prompt.tokens.clone().requires_grad_()
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([300.0])
    model.denoise(x, t, prompt.with_tokens(tokens)).square().sum().backward()
    assert tokens.grad.isfinite().all()
    assert tokens.grad.any()


def test_concepts_that_are_too_many_for_a_prompt_are_refused():
    many = [Concept(name) for name in ("cat", "star", "tree", "car", "boat") * 16]
    for number, concept in enumerate(many):
        object.__setattr__(concept, "name", f"{concept.name} {number}")
    with pytest.raises(ErasureError, match="SLD needs all concepts in one prompt; found 80"):
        SLD(concepts=many, backbone=TinyBackbone()).configure_model()


@pytest.mark.parametrize("family", [TinySD3, TinyPixArt])
def test_it_acts_alike_at_every_length_that_t5_pads_to(family):
    edited, plain = (family().to_pipeline() for _ in range(2))
    erase(edited, "cat", method="SLD", progress_bar=False, **OURS)
    options = {"clean_caption": False, "use_resolution_binning": False}

    def change(length):
        images = []
        for pipeline in (edited, plain):
            pipeline.set_progress_bar_config(disable=True)
            noise = torch.Generator().manual_seed(1)
            settings = {"num_inference_steps": 3, "output_type": "latent", "generator": noise}
            settings |= options if family is TinyPixArt else {}
            images.append(pipeline("a cat", max_sequence_length=length, **settings).images)
        return (images[0] - images[1]).flatten()

    own = change(20)
    assert own.abs().max() > 1e-2
    for length in (12, 40):
        assert torch.cosine_similarity(change(length), own, dim=0) > 0.99


@torch.no_grad()
def test_a_prompt_that_is_the_concept_s_is_not_guided():
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(300.0)

    def change(template):
        module = rule(template=template, scale=1.0)
        prompt = module.backbone.encode(["cat, star"])
        moved = module.backbone.denoise(x, t, prompt) - module.original.denoise(x, t, prompt)
        return moved.abs().max()

    assert change("{}") < 1e-5
    assert change("an image showing {}") > 1e-4


def test_a_template_without_a_place_for_the_concepts_is_refused():
    with pytest.raises(ErasureError, match=r"SLD needs \{\} in its template .* found 'nudity'"):
        rule(template="nudity")


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_leaves_half_of_the_rest_at_least():
    cigarette = [Concept("cigarette", "lollipop")]
    module = quick_fit(SLD(backbone="emoji-world", concepts=cigarette, **numbers("sld")), steps=1)
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) >= 0.5
