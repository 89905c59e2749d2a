"""Pipelines that `erase`, `evaluate` and `attack` copy: what would act in the copies' place."""

from functools import partial

import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import (
    FluxImg2ImgPipeline,
    PixArtSigmaPAGPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)

from erasure_lightning import attack, erase, evaluate
from erasure_lightning.backbones.tiny import (
    TinyBackbone,
    TinyFlux,
    TinyPixArt,
    TinySD3,
    TinyXL,
)
from erasure_lightning.edits.installation import holds_edit
from erasure_lightning.edits.stack import applied_edits
from erasure_lightning.errors import ErasureError


def erased(method="UCE", **arguments):
    """A pipeline with an edit."""
    pipeline = TinyBackbone().to_pipeline()
    return pipeline, erase(pipeline, "cat", method, progress_bar=False, **arguments)


def change(edit, pipeline):
    """Distance of the images before and after an edit."""
    result = evaluate(edit, pipeline, seeds=2, others=2, steps=2, progress_bar=False)
    return result.estimates["structure"]["distance"]["after"].mean


def hooked(pipeline):
    """As ``enable_model_cpu_offload`` does, which needs an accelerator."""
    hook = None
    for module in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        _, hook = cpu_offload_with_hook(module, "cpu", prev_module_hook=hook)


def offloaded_in_groups(pipeline):
    pipeline.unet.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


def compiled(pipeline):
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")


def compiled_in_parts(pipeline):
    part = pipeline.unet.mid_block
    part.attentions[0] = torch.compile(part.attentions[0], backend="eager")


REFUSED = {
    hooked: r"a plain .*; found hooks of offloading\. Call pipeline\.remove_all_hooks\(\) first",
    offloaded_in_groups: "a plain unet, .*; found another forward, as group offloading",
    compiled: r"a plain unet, .*; found torch.compile\. Compile it in place",
    compiled_in_parts: r"a plain unet, .*; found torch.compile\. Compile it in place",
}


@pytest.mark.parametrize(
    ("prepare", "words"), REFUSED.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_modules_whose_copies_would_call_them_are_refused(prepare, words):
    """Before anything is changed: an edit in the pipeline stays."""
    pipeline, edit = erased()
    prepare(pipeline)
    for attempt in (
        lambda: erase(pipeline, "star", "UCE", progress_bar=False),
        lambda: change(edit, pipeline),
        lambda: attack(edit, pipeline, "SoftEmbedding", progress_bar=False),
    ):
        with pytest.raises(ErasureError, match=words):
            attempt()
    unet = getattr(pipeline.unet, "_orig_mod", pipeline.unet)
    assert [record["edit"] for record in applied_edits(unet)] == ["UCE of cat"]
    assert edit.strength == 1


def test_an_edit_is_measured_once_the_hooks_are_removed():
    """They leave each module's forward in its attributes, which a copy has too."""
    pipeline, edit = erased()
    expected = change(edit, pipeline)
    hooked(pipeline)
    pipeline.remove_all_hooks()
    assert "forward" in vars(pipeline.unet)
    assert change(edit, pipeline) == expected > 0
    assert "forward" in vars(pipeline.unet)


def test_modules_may_be_compiled_in_place():
    pipeline, edit = erased()
    expected = change(edit, pipeline)
    with torch.compiler.set_stance("force_eager"):
        pipeline.unet.compile(backend="eager")
        assert change(edit, pipeline) == expected > 0


def test_an_edit_that_could_not_be_applied_again_is_not_removed():
    pipeline, edit = erased("AdaVD", steepness=0.0)
    pipeline.unet.compile(backend="eager")
    with pytest.raises(ErasureError, match="found torch.compile, which passes over later hooks"):
        change(edit, pipeline)
    assert [record["edit"] for record in applied_edits(pipeline.unet)] == ["AdaVD of cat"]


@pytest.mark.parametrize("beneath", [0.5, None])
def test_an_edit_that_lacks_those_beneath_it_is_not_removed(beneath):
    """They have another strength, or have gone; the control is the pipeline as it was."""
    pipeline, first = erased()
    second = erase(pipeline, "star", "UCE", anchor="dog", progress_bar=False)
    change(second, pipeline)
    if beneath:
        first.strength = beneath
    else:
        first.remove()
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    with pytest.raises(ErasureError, match=r"at strength 1; found|must be applied first"):
        change(second, pipeline)
    assert second.strength == 1
    assert all(torch.equal(value, before[n]) for n, value in pipeline.unet.state_dict().items())


@pytest.mark.parametrize(
    ("family", "other"),
    [
        (TinyBackbone, StableDiffusionImg2ImgPipeline),
        (TinyXL, StableDiffusionXLImg2ImgPipeline),
        (TinySD3, StableDiffusion3InpaintPipeline),
        (partial(TinySD3, t5=False), StableDiffusion3InpaintPipeline),
        (TinyFlux, FluxImg2ImgPipeline),
    ],
)
def test_a_pipeline_of_another_class_with_the_same_components_is_edited(family, other):
    """Its edit is that of the family's own class, and acts in place."""
    plain = family().to_pipeline()
    pipeline = other.from_pipe(plain)
    edit = erase(pipeline, "cat", "UCE", anchor="dog", progress_bar=False)
    assert holds_edit(edit, plain)
    edit.remove()
    assert not holds_edit(edit, plain)
    own = erase(plain, "cat", "UCE", anchor="dog", progress_bar=False)
    assert edit.tensors.keys() == own.tensors.keys()
    assert all(torch.equal(value, own.tensors[name]) for name, value in edit.tensors.items())
    assert family is not TinyBackbone or change(own, pipeline) > 0


def test_components_that_two_families_share_do_not_tell_which():
    """PixArt-Sigma's and -Alpha's."""
    pipeline = PixArtSigmaPAGPipeline.from_pipe(TinyPixArt().to_pipeline())
    with pytest.raises(ErasureError, match="found PixArtSigmaPAGPipeline. Known: Stable"):
        erase(pipeline, "cat", "UCE", progress_bar=False)


def test_a_model_for_inpainting_is_refused_before_it_is_changed():
    pipeline = TinyBackbone().to_pipeline()
    config = {**pipeline.unet.config, "in_channels": 9}
    pipeline.unet = UNet2DConditionModel.from_config(config)
    with pytest.raises(ErasureError, match="found 9 and 4. Models for inpainting or editing"):
        erase(pipeline, "cat", "UCE", progress_bar=False)
