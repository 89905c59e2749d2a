"""Edits in stock diffusers pipelines: they act, act once, last, and go into no other component
unseen.
"""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from edit_files import read_content, write_content
from peft import LoraConfig
from torch import nn
from trivial import Distillation

from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.edits.applied import apply_edit
from erasure_lightning.edits.components import component_fingerprints, is_same_component
from erasure_lightning.edits.edit import read_edit
from erasure_lightning.edits.stack import APPLIED_EDITS
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.receler import Receler
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.methods.spm import SPM
from erasure_lightning.training.adapter_methods import LoraErasure

CONCEPTS = [Concept("cat", "dog")]


class Lora(LoraErasure):
    """Low-rank adapters that are never trained here."""

    def erasure_loss(self, *_):
        raise NotImplementedError


METHODS = {
    "weights": (Distillation, {}),
    "other": (Distillation, {"seed": 7}),
    "spm": (SPM, {}),
    "receler": (Receler, {"rank": 8}),
    "text": (SAGE, {}),
    "lora": (Lora, {"merge": False}),
}
BESIDE = ["spm", "receler"]


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    """Edits of the tiny model, whose values are random and not those of their beginning."""
    folder = tmp_path_factory.mktemp("edits")
    for name, (method, arguments) in METHODS.items():
        module = method(concepts=CONCEPTS, backbone=TinyBackbone(), **arguments)
        module.configure_model()
        torch.manual_seed(module.seed)
        with torch.no_grad():
            for parameter in module.trainable().values():
                parameter += 0.3 * torch.randn_like(parameter)
        module.save_edit(folder / name / "edit.safetensors")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The tiny model, and another of the same shapes, as diffusers writes them."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        TinyBackbone(seed=seed).save(folder / str(seed))
    return folder


@pytest.fixture
def load(folders):
    def load(seed=0, **arguments):
        pipeline = StableDiffusionPipeline.from_pretrained(
            folders / str(seed), safety_checker=None, **arguments
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


def latents(pipeline, prompt="a cat"):
    generator = torch.Generator().manual_seed(1)
    return pipeline(prompt, num_inference_steps=2, generator=generator, output_type="latent").images


def differ(one, other):
    return not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_an_edit_acts_and_twice_is_once(edits, load, name):
    pipeline = load()
    before = latents(pipeline)
    assert apply_edit(edits / name, pipeline).metadata["transferred"] == []
    once = latents(pipeline)
    assert differ(once, before)
    apply_edit(edits / name, pipeline)
    assert torch.equal(latents(pipeline), once)
    component = pipeline.text_encoder if name == "text" else pipeline.unet
    assert [mark["transferred"] for mark in getattr(component, APPLIED_EDITS)] == [False]


@pytest.mark.parametrize("name", ["weights", "lora", "text"])
def test_weights_last(edits, load, name, tmp_path):
    pipeline = load()
    apply_edit(edits / name, pipeline)
    pipeline.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(latents(again), latents(pipeline))
    if name == "lora":  # a difference cannot be told to be in the weights already
        with pytest.raises(ErasureError, match="found another of equal shapes, or one that was"):
            apply_edit(edits / name, again)
    else:
        assert (
            apply_edit(edits / name, again).metadata["transferred"] == []
        )  # it holds the edit, if not its mark
    assert torch.equal(latents(again), latents(pipeline))


@pytest.mark.parametrize("name", BESIDE)
def test_adapters_refuse_to_be_saved(edits, load, name, tmp_path):
    pipeline = load()
    apply_edit(edits / name, pipeline)
    words = (
        r"UNet2DConditionModel.save_pretrained needs weights alone; found \w+ adapters.*call"
        r" apply_edit after"
    )
    for saved in (pipeline, pipeline.unet):
        with pytest.raises(ErasureError, match=words):
            saved.save_pretrained(tmp_path / "erased")
    with pytest.raises(ErasureError, match=words):  # the component itself refuses in every pipeline
        StableDiffusionPipeline(
            **pipeline.components, requires_safety_checker=False
        ).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "erased").exists()
    pipeline.unet = load().unet
    pipeline.save_pretrained(tmp_path / "plain")
    assert (tmp_path / "plain" / "unet").is_dir()


@pytest.mark.parametrize("name", BESIDE)
def test_a_folder_that_was_saved_with_adapters_is_not_loaded(edits, load, tmp_path, name):
    pipeline = load()
    pipeline.save_pretrained(tmp_path)
    load_backbone(str(tmp_path))
    apply_edit(edits / name, pipeline)
    type(pipeline.unet).save_pretrained(
        pipeline.unet, tmp_path / "unet"
    )  # as if nothing refused it
    with pytest.raises(
        ErasureError, match=r"needs the tensors that its config describes; found \d+ unexpected"
    ):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["weights", "text"])
def test_the_same_component_is_recognised_in_other_precisions(edits, load, name, dtype):
    assert apply_edit(edits / name, load(dtype=dtype)).metadata["transferred"] == []
    with pytest.raises(ErasureError, match="another of equal shapes"):
        apply_edit(edits / name, load(seed=1, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_of_a_bfloat16_base_is_recognised(tmp_path, load, dtype):
    module = Distillation(concepts=CONCEPTS, backbone=TinyBackbone(), base_dtype="bfloat16")
    module.configure_model()
    module.backbone.text_layers().popitem()[1].weight.data += 1
    module.save_edit(tmp_path / "edit.safetensors")
    assert apply_edit(tmp_path, load(dtype=dtype)).metadata["transferred"] == []
    with pytest.raises(
        ErasureError, match="float16, by which a bfloat16 base is not known. Load it in float32"
    ):
        apply_edit(tmp_path, load(dtype=torch.float16))
    with pytest.raises(ErasureError, match="another of equal shapes"):
        apply_edit(tmp_path, load(seed=1, dtype=dtype))


def test_another_component_of_equal_shapes_is_refused_unless_it_is_transferred(edits, load):
    pipeline = load(seed=1)
    before = latents(pipeline)
    words = (
        "needs StableDiffusionPipeline.unet to be the unet of its base model; found another of"
        " equal shapes.*transfer"
    )
    with pytest.raises(ErasureError, match=words):
        apply_edit(edits / "weights", pipeline)
    with pytest.raises(ErasureError, match="to be the unet of its base model"):
        apply_edit(edits / "spm", pipeline)
    assert torch.equal(latents(pipeline), before)
    assert apply_edit(edits / "weights", pipeline, transfer=True).metadata["transferred"] == [
        "unet"
    ]
    after = latents(pipeline)
    assert differ(after, before)
    assert apply_edit(edits / "weights", pipeline).metadata["transferred"] == [
        "unet"
    ]  # it is in already
    assert torch.equal(latents(pipeline), after)
    (record,) = getattr(pipeline.unet, APPLIED_EDITS)
    assert (record["edit"], record["transferred"]) == ("Distillation of cat", True)


def test_a_text_encoder_transfers_to_another_unet(edits, load):
    pipeline = load()
    pipeline.unet = load(seed=1).unet
    before = latents(pipeline)
    assert apply_edit(edits / "text", pipeline).metadata["transferred"] == []
    assert differ(latents(pipeline), before)
    with pytest.raises(ErasureError, match="to be the text_encoder of its base model"):
        apply_edit(edits / "text", load(seed=1))


def test_an_edit_of_layout_1_is_read_and_must_be_transferred(edits, load, tmp_path):
    tensors, metadata = read_content(edits / "text" / "edit.safetensors")
    del metadata["fingerprints"]
    older = {
        name.replace("text_encoder.", "text_encoders.0."): value for name, value in tensors.items()
    }
    write_content(tmp_path / "edit.safetensors", older, metadata | {"format": 1})
    assert read_edit(tmp_path / "edit.safetensors").tensors.keys() == tensors.keys()
    with pytest.raises(ErasureError, match="an edit of an earlier version, without fingerprints"):
        apply_edit(tmp_path, load())
    pipeline, expected = load(), load()
    apply_edit(tmp_path, pipeline, transfer=True)
    apply_edit(edits / "text", expected)
    assert torch.equal(latents(pipeline), latents(expected))


def test_another_edit_of_the_same_component_is_refused(edits, load):
    pipeline = load()
    apply_edit(edits / "weights", pipeline)
    with pytest.raises(
        ErasureError,
        match=r"found one that holds another edit \(Distillation of cat\)\. Add",
    ):
        apply_edit(edits / "other", pipeline)
    apply_edit(edits / "text", pipeline)  # another component is another matter
    assert apply_edit(edits / "other", pipeline, transfer=True).metadata["transferred"] == ["unet"]


@pytest.mark.parametrize("name", ["weights", "receler"])
def test_another_edit_on_top_of_adapters_is_refused(edits, load, name):
    pipeline = load()
    apply_edit(edits / "spm", pipeline)
    with pytest.raises(
        ErasureError, match=r"without adapters; found those of another edit \(SPM of cat\)"
    ):
        apply_edit(edits / name, pipeline)
    if name == "weights":
        apply_edit(edits / name, pipeline, transfer=True)
    else:
        with pytest.raises(ErasureError, match="without adapters"):
            apply_edit(edits / name, pipeline, transfer=True)


def compiled(pipeline):
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")


def compiled_in_place(pipeline):
    pipeline.unet.compile(backend="eager")


def compiled_in_parts(pipeline):
    pipeline.unet.down_blocks[0].attentions[0] = torch.compile(
        pipeline.unet.down_blocks[0].attentions[0], backend="eager"
    )


def with_lora(pipeline):
    pipeline.unet.add_adapter(LoraConfig(r=4, target_modules=["to_k", "to_v"]))


def fused(pipeline):
    pipeline.fuse_qkv_projections()


def unfused(pipeline):
    fused(pipeline)
    pipeline.unfuse_qkv_projections()


def offloaded(pipeline):
    pipeline.enable_sequential_cpu_offload(device="cpu")


def offloaded_in_groups(pipeline):
    pipeline.unet.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


def quantised(pipeline):
    pipeline.unet.conv_in.weight = nn.Parameter(
        torch.ones(16, 4, 3, 3, dtype=torch.int8), requires_grad=False
    )


def with_fused_lora(pipeline):
    with_lora(pipeline)
    pipeline.unet.fuse_lora()


@pytest.mark.parametrize(
    ("change", "undo", "words"),
    [
        (offloaded, "remove_all_hooks", r"meta device.*pipeline.remove_all_hooks\(\) first"),
        (fused, "unfuse_qkv_projections", r"Call pipeline.unet.unfuse_qkv_projections\(\)"),
        (with_fused_lora, "unfuse_lora", r"Call pipeline.unfuse_lora\(\)"),
    ],
)
def test_an_edit_is_changed_and_removed_only_where_that_acts(edits, load, change, undo, words):
    pipeline, plain = load(), load()
    edit = apply_edit(edits / "weights", pipeline)
    change(pipeline)
    for attempt in (lambda: setattr(edit, "strength", 0.5), edit.remove):
        with pytest.raises(ErasureError, match=words):
            attempt()
        assert edit.strength == 1
    edit.strength = 1  # what it is already
    getattr(pipeline, undo)()
    assert differ(latents(pipeline), latents(plain))
    edit.remove()
    assert torch.allclose(latents(pipeline), latents(plain), atol=1e-5)


def with_merged_lora(pipeline):
    """A LoRA that was fused and unloaded."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["to_k", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    pipeline.unet.fuse_lora()
    pipeline.unet.unload_lora()


@pytest.mark.parametrize("strength", [1, 0.5])
def test_weights_that_were_changed_after_the_edit_are_not_overwritten(edits, load, strength):
    pipeline = load()
    edit = apply_edit(edits / "weights", pipeline)
    edit.strength = strength
    with_merged_lora(pipeline)
    before = latents(pipeline)
    for attempt in (lambda: setattr(edit, "strength", 0.7), edit.remove):
        with pytest.raises(ErasureError, match="as of a LoRA that was fused and unloaded. Load"):
            attempt()
    assert edit.strength == strength
    assert torch.equal(latents(pipeline), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_edit_is_removed_from_weights_that_were_cast_and_cast_back(edits, load, dtype):
    pipeline, plain = load(), load()
    edit = apply_edit(edits / "weights", pipeline)
    pipeline.to(dtype)
    pipeline.to(torch.float32)
    edit.remove()
    after = dict(pipeline.unet.named_parameters())
    for name in edit.tensors:
        name = name.removeprefix("unet.")
        assert torch.equal(after[name], plain.unet.get_parameter(name))


@pytest.mark.parametrize(
    "change", [compiled, compiled_in_parts, compiled_in_place, with_lora, unfused]
)
def test_an_edit_finds_weights_behind_other_names(edits, load, change):
    pipeline, expected = load(), load()
    change(pipeline)
    # Compiling a whole UNet takes seconds: only the parts run compiled.
    with torch.compiler.set_stance("default" if change is compiled_in_parts else "force_eager"):
        before = latents(pipeline)
        assert apply_edit(edits / "weights", pipeline).metadata["transferred"] == []
        apply_edit(edits / "weights", expected)
        assert differ(latents(pipeline), before)
        assert torch.allclose(latents(pipeline), latents(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words", "names"),
    [
        (
            fused,
            r"fused attention projections.*Call pipeline.unet.unfuse_qkv_projections\(\)",
            ["weights", *BESIDE],
        ),
        (
            offloaded,
            "the meta device.*Call apply_edit before enable_sequential_cpu_offload",
            ["weights", *BESIDE],
        ),
        (
            offloaded_in_groups,
            "group offloading.*Call apply_edit before enable_group_offload",
            ["weights"],
        ),
        (
            quantised,
            r"quantised ones \(Tensor, int8\).*save the pipeline, and quantise",
            ["weights"],
        ),
        (with_fused_lora, r"a LoRA fused into them.*Call pipeline.unfuse_lora\(\)", ["weights"]),
        (compiled, "torch.compile, which passes over later hooks. Call apply_edit before", BESIDE),
        (
            compiled_in_place,
            "torch.compile, which passes over later hooks. Call apply_edit before",
            BESIDE,
        ),
    ],
)
def test_weights_that_do_not_act_are_refused(edits, load, change, words, names):
    pipeline = load()
    change(pipeline)
    for name in names:
        with pytest.raises(ErasureError, match=words) as caught:
            apply_edit(edits / name, pipeline)
        assert "\n" not in str(caught.value)


def test_what_stands_beside_a_component_is_not_its_fingerprint(load):
    unet = load().unet
    before = component_fingerprints(unet)
    with_ip = {
        name: IPAdapterAttnProcessor2_0(16, 32) if "attn2" in name else processor
        for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(with_ip)
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_k", "to_v"]))
    assert component_fingerprints(unet) == before
    unet.conv_out.bias.data += 1
    assert not is_same_component(component_fingerprints(unet), before)


def test_a_copy_of_a_pipeline_with_adapters_acts_and_refuses_alike(edits, load, tmp_path):
    pipeline = load()
    apply_edit(edits / "spm", pipeline)
    copied = copy.deepcopy(pipeline)
    assert torch.equal(latents(copied), latents(pipeline))
    with pytest.raises(ErasureError, match="needs weights alone"):
        copied.save_pretrained(tmp_path)


def test_fused_projections_take_the_edit_once_they_are_unfused(edits, load):
    pipeline = load()
    fused(pipeline)
    before = latents(pipeline)
    pipeline.unet.unfuse_qkv_projections()
    apply_edit(edits / "weights", pipeline)
    fused(pipeline)
    assert differ(latents(pipeline), before)
    apply_edit(edits / "weights", pipeline)  # is in already


def test_an_edit_without_effect_is_refused(edits, load, tmp_path):
    tensors, metadata = read_content(edits / "weights" / "edit.safetensors")
    unet = load().unet
    same = {name: unet.get_parameter(name.removeprefix("unet.")).detach() for name in tensors}
    write_content(tmp_path / "same", same, metadata)
    close = {name: value.half().float() for name, value in same.items()}
    write_content(tmp_path / "close", close, metadata)
    with pytest.raises(
        ErasureError,
        match="needs to change StableDiffusionPipeline.unet; .* all of its 8 tensors equal",
    ):
        apply_edit(tmp_path / "same", load())
    apply_edit(tmp_path / "close", load())
    with pytest.raises(ErasureError, match="in float16 all of its 8 tensors equal the original"):
        apply_edit(tmp_path / "close", load(dtype=torch.float16))


def with_values(edits, name, target, change):
    tensors, metadata = read_content(edits / name / "edit.safetensors")
    write_content(target, {n: change(n, value) for n, value in tensors.items()}, metadata)
    return target


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda n, v: torch.zeros_like(v) if ".up" in n or ".maps.2" in n else v,
            "needs to change",
        ),
        (
            lambda n, v: torch.cat((v, v)) if ".up" in n or ".maps.2" in n else v,
            "missing or of another shape",
        ),
    ],
    ids=["nothing to add", "another shape"],
)
def test_adapters_that_do_not_fit_leave_the_pipeline_as_it_was(
    edits, load, tmp_path, name, change, words
):
    path = with_values(edits, name, tmp_path / "edit.safetensors", change)
    pipeline = load()
    before = latents(pipeline)
    with pytest.raises(ErasureError, match=words):
        apply_edit(path, pipeline)
    assert torch.equal(latents(pipeline), before)
    pipeline.save_pretrained(tmp_path / "plain")
    apply_edit(edits / name, pipeline)
    assert differ(latents(pipeline), before)


def test_values_that_do_not_stay_are_an_error(edits, load, tmp_path):
    path = with_values(edits, "weights", tmp_path / "edit.safetensors", lambda _, v: v.clone())
    pipeline = load()
    one, other = [n.removeprefix("unet.") for n in read_edit(path).tensors][:2]
    pipeline.unet.get_submodule(one.removesuffix(".weight")).weight = pipeline.unet.get_parameter(
        other
    )
    with pytest.raises(ErasureError, match="found other values in 1, .*two names share one tensor"):
        apply_edit(path, pipeline, transfer=True)


def test_low_rank_factors_are_added_to_the_weights_beneath(edits, load):
    tensors = read_edit(edits / "lora" / "edit.safetensors").tensors
    assert all(".lora_" in name for name in tensors)
    pipeline = load()
    edit = apply_edit(edits / "lora", pipeline)
    held, before = (dict(each.unet.named_parameters()) for each in (pipeline, load()))
    for name, down in tensors.items():
        if ".lora_A." in name:
            key = name.partition(".lora_A.")[0].removeprefix("unet.") + ".weight"
            product = tensors[name.replace(".lora_A.", ".lora_B.")] @ down
            assert torch.allclose(held[key] - before[key], product, atol=1e-6)
    assert apply_edit(edits / "lora", pipeline).fingerprint == edit.fingerprint  # it is held
    edit.remove()
    assert all(torch.equal(held[name], value) for name, value in before.items())


@pytest.mark.parametrize(("name", "found"), [("nowhere", "none"), ("conv_in", "one of shape")])
def test_low_rank_factors_need_the_weights_beneath(edits, load, tmp_path, name, found):
    tensors, metadata = read_content(edits / "lora" / "edit.safetensors")
    layer = next(iter(tensors)).removeprefix("unet.").partition(".lora_")[0]
    moved = {n.replace(layer, name): value for n, value in tensors.items()}
    write_content(tmp_path / "edit.safetensors", moved, metadata)
    with pytest.raises(ErasureError, match=rf"weights beneath its adapters; found {found}.*{name}"):
        apply_edit(tmp_path, load())
