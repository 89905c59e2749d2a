"""Exports, loaded back with the tools that they are meant for."""

import copy
import errno
import json
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfyui import load_lora
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusionImg2ImgPipeline
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from original_layouts import (
    narrow_flux_readers,
    original_tensors,
    second_generation,
    write_original,
)
from packages import install
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from erasure_lightning import (
    Concept,
    apply_edit,
    compose,
    erase,
    export_edit,
    import_edit,
    load_edit,
)
from erasure_lightning.__main__ import main
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinyPixArt, TinySD3, TinyXL
from erasure_lightning.edits.lora_layouts import kohya_metadata
from erasure_lightning.edits.original_names import TRANSFORMER_LAYERS, original_rows
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.trajectory_bank import TrajectoryBank

QUICK = {"progress_bar": False, "accelerator": "cpu"}
FAMILIES = [TinyBackbone, TinyXL, TinySD3, TinyFlux]


def erased(family, method):
    """A pipeline that holds an edit, and the edit."""
    pipeline = stock(family)
    arguments = {"anchor": "dog", **QUICK}
    if method == "lora":
        bank = TrajectoryBank(trajectories=2, steps=2)
        arguments |= {"method": "ESD", "rank": 2, "merge": False, "lr": 0.1, "warmup": 0}
        arguments |= {"steps": 2, "latents": bank}
    elif method == "full":
        bank = TrajectoryBank(trajectories=2, steps=2)
        arguments |= {"method": "ESD", "lr": 0.01, "warmup": 0, "steps": 2, "latents": bank}
    elif method == "gated":
        arguments |= {"method": "SPM", "steps": 2}
    elif method == "text":
        arguments |= {"method": "SAGE", "lr": 0.01, "warmup": 0, "steps": 2, "retention": []}
    else:
        arguments |= {"method": "UCE"}
    return pipeline, erase(pipeline, "cat", **arguments)


#: The same for tests that change neither.
shared = cache(erased)


def latents(pipeline):
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    if isinstance(pipeline, FluxPipeline):
        settings |= {"height": 16, "width": 16}
    return pipeline("a cat", generator=generator, **settings).images


def stock(family):
    pipeline = family().to_pipeline()
    if family is TinyFlux:
        pipeline.default_sample_size = 8  # of latents; diffusers has 128 for any model
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.__name__)
def family(request):
    return request.param


@pytest.fixture(scope="module", params=["closed", "lora", "text"])
def edited(request, family):
    pipeline, edit = shared(family, request.param)
    return family, pipeline, edit, request.param


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.safetensors"


def test_a_lora_draws_as_the_edit_does(edited, path):
    family, pipeline, edit, method = edited
    if method == "text":  # norms and biases are no LoRA, and diffusers reads no T5's
        exported = export_edit(edit, path, "lora")
        t5 = {TinyFlux: "text_encoder_2", TinySD3: "text_encoder_3"}.get(family)
        parts = {name.partition(".")[0] for name in exported.left_out}
        assert t5 is None or (
            t5 in parts and t5 not in {k.partition(".")[0] for k in load_file(path)}
        )
        assert exported.error > 0
        return
    exported = export_edit(edit, path, "lora", energy=1)
    assert exported.error < 1e-4
    other = stock(family)
    before = latents(other)
    other.load_lora_weights(str(path))
    assert (latents(other) - latents(pipeline)).abs().max() < 1e-3 * latents(pipeline).abs().max()
    assert not torch.equal(before, latents(pipeline))


def test_the_error_in_images_is_that_of_the_low_rank_factors(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("erasure_lightning.edits.image_error._STEPS", 4)
    errors = {}
    own = erased(TinyBackbone, "closed")
    for method, rank in (("full", 1), ("full", 64), ("closed", 64)):
        pipeline, edit = own if method == "closed" else shared(TinyBackbone, method)
        edited = latents(pipeline)
        path = tmp_path / f"{method}-{rank}.safetensors"
        errors[method, rank] = export_edit(edit, path, "lora", rank=rank, images=2).image_error
        assert torch.equal(latents(pipeline), edited)
    # At full rank the biases of the first are lost alone, and of a closed form nothing.
    assert errors["full", 1] > errors["full", 64] > 1e-5 > errors["closed", 64]
    erase(pipeline, "bird", method="UCE", anchor="dog", progress_bar=False)
    stacked = latents(pipeline)
    export_edit(edit, tmp_path / "beneath.safetensors", "lora", rank=1, images=1)
    assert torch.equal(latents(pipeline), stacked)
    assert not torch.equal(stacked, edited)
    assert "it/s" not in capfd.readouterr().err  # a progress bar of diffusers for each image
    with pytest.raises(ErasureError, match="images compares low-rank factors"):
        export_edit(edit, tmp_path / "x.safetensors", "diff", images=2)


@pytest.mark.parametrize("method", ["lora", "closed"])
@pytest.mark.parametrize("family", [TinyBackbone, TinyXL])
def test_a_kohya_lora_is_read_by_diffusers(family, method, path):
    pipeline, edit = shared(family, method)
    export_edit(edit, path, "kohya-lora", energy=1)
    other = stock(family)
    other.load_lora_weights(str(path))
    assert torch.allclose(latents(other), latents(pipeline), atol=1e-3)


def test_text_encoders_of_a_kohya_lora_are_read_by_diffusers(path):
    pipeline, edit = shared(TinyBackbone, "text")
    exported = export_edit(edit, path, "kohya-lora", energy=1)
    assert exported.left_out
    other = stock(TinyBackbone)
    other.load_lora_weights(str(path))
    other.fuse_lora(components=["text_encoder"])
    other.unload_lora_weights()
    ours = dict(pipeline.text_encoder.named_parameters())
    theirs = dict(other.text_encoder.named_parameters())
    changed = [n.partition(".")[2] for n in edit.tensors if n.endswith("proj.weight")]
    assert changed
    for name in changed:
        assert torch.allclose(ours[name], theirs[name], atol=1e-4)


def test_differences_added_by_comfyui_are_the_edit(edited, path):
    family, pipeline, edit, _ = edited
    export_edit(edit, path, "diff")
    other = stock(family)
    load_lora(load_file(path), other)
    assert_weights(other, weights(pipeline), 1e-6)
    with pytest.raises(AssertionError):
        assert_weights(stock(family), weights(pipeline), 1e-6)


@pytest.mark.parametrize("method", ["lora", "closed"])
@pytest.mark.parametrize("family", [TinyBackbone, TinyXL, TinySD3, TinyFlux])
def test_comfyui_finds_every_layer_of_a_kohya_lora_and_adds_the_edit(family, method, path):
    pipeline, edit = shared(family, method)
    export_edit(edit, path, "kohya-lora", energy=1)
    other = stock(family)
    load_lora(load_file(path), other)
    assert_weights(other, weights(pipeline), 1e-5)
    with pytest.raises(AssertionError):
        assert_weights(stock(family), weights(pipeline), 1e-5)


def test_a_whole_pipeline_is_read_by_diffusers(edited, tmp_path):
    _, pipeline, edit, _ = edited
    export_edit(edit, tmp_path / "whole", "diffusers")
    other = DiffusionPipeline.from_pretrained(tmp_path / "whole")
    other.set_progress_bar_config(disable=True)
    assert torch.equal(latents(other), latents(pipeline))


def test_an_edited_component_is_read_by_diffusers(edited, tmp_path):
    family, pipeline, edit, _ = edited
    export_edit(edit, tmp_path / "parts", "component")
    other = stock(family)
    for folder in (tmp_path / "parts").iterdir():
        module = getattr(other, folder.name)
        setattr(other, folder.name, type(module).from_pretrained(folder))
    assert torch.allclose(latents(other), latents(pipeline), atol=1e-5)


def test_an_edited_component_is_read_by_stock_in_the_authors_layout(edited, tmp_path, monkeypatch):
    """Bit for bit; the control is the unedited pipeline."""
    family, pipeline, edit, method = edited
    flux = SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    monkeypatch.setitem(flux, "checkpoint_mapping_fn", narrow_flux_readers(32)[0])
    export_edit(edit, tmp_path / "parts", "component", layout="original")
    files = sorted((tmp_path / "parts").iterdir())
    assert [file.stem for file in files] == sorted({n.partition(".")[0] for n in edit.tensors})
    for file in files:
        module = getattr(pipeline, file.stem)
        module.save_pretrained(tmp_path / "configs" / file.stem)
        if method == "text":  # as clip_l.safetensors and its kind are read, by transformers
            file.replace(tmp_path / "configs" / file.stem / "model.safetensors")
            other = type(module).from_pretrained(tmp_path / "configs" / file.stem)
        else:
            expected = original_tensors(pipeline)
            names = {n for n in expected if n.startswith(("model.", "double_blocks", "single_bl"))}
            assert names <= load_file(file).keys()
            config = str(tmp_path / "configs")
            other = type(module).from_single_file(str(file), config=config, subfolder=file.stem)
        state = module.state_dict()
        assert other.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
        plain = getattr(stock(family), file.stem).state_dict()
        assert any(not torch.equal(plain[name], state[name]) for name in state)


def test_the_users_checkpoint_gets_the_edit_and_nothing_else(edited, tmp_path):
    family, pipeline, edit, method = edited
    source = write_original(original_tensors(stock(family)), tmp_path / "model.safetensors")
    if family in (TinyFlux, TinySD3) and method == "text":
        # Published files hold FLUX.1's transformer alone, and no projection of SD 3's first CLIP.
        with pytest.raises(ErasureError, match="lacks this component"):
            export_edit(edit, tmp_path / "e.safetensors", "checkpoint", checkpoint=source)
        return
    expected = original_tensors(pipeline)
    target = tmp_path / "erased.safetensors"
    export_edit(edit, target, "checkpoint", checkpoint=source)
    before, after = load_file(source), load_file(target)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(torch.allclose(after[name], expected[name], atol=1e-6) for name in before)
    assert source.stat().st_size == target.stat().st_size


def test_a_checkpoint_of_stable_diffusion_2(tmp_path):
    pipeline, edit = shared(TinyBackbone, "text")
    source = write_original(second_generation(stock(TinyBackbone)), tmp_path / "m.safetensors")
    export_edit(edit, tmp_path / "e.safetensors", "checkpoint", checkpoint=source)
    after, expected = load_file(tmp_path / "e.safetensors"), second_generation(pipeline)
    assert all(torch.allclose(after[name], expected[name], atol=1e-6) for name in after)


@pytest.mark.parametrize("family", [TinySD3, TinyFlux])
def test_every_parameter_of_a_transformer_has_rows_of_its_own(family):
    """The map is one: no two parameters share a row, and all rows of the original are filled."""
    transformer = family().to_pipeline().transformer
    shapes = {name: value.shape for name, value in transformer.named_parameters()}
    taken = {}
    for name, shape in shapes.items():
        rows = original_rows(type(transformer).__name__, name, shapes)
        assert rows is not None, name
        new = set(range(rows.start, rows.start + shape[0]))
        assert not new & taken.setdefault(rows.name, set())
        taken[rows.name] |= new
    written = {name.removeprefix("model.diffusion_model.") for name in
               original_tensors(family().to_pipeline())}  # fmt: skip
    assert taken.keys() <= written
    assert type(transformer).__name__ in TRANSFORMER_LAYERS


def test_factors_retain_the_energy_that_is_given(path):
    _, edit = shared(TinyBackbone, "full")
    errors = [
        export_edit(edit, path.with_name(f"{i}.safetensors"), "lora", energy=energy).error
        for i, energy in enumerate((0.5, 0.9, 0.999))
    ]
    assert errors == sorted(errors, reverse=True)
    assert export_edit(edit, path, "lora", rank=1).ranks == (1, 1)


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("diff", {"rank": 4}, "rank and energy are of low-rank factors; diff has none"),
        ("diff", {"energy": 0.9}, "rank and energy are of low-rank factors; diff has none"),
        ("lora", {"rank": 4, "energy": 0.9}, "needs a rank or an energy; found both, 4 and 0.9"),
    ],
)
def test_options_of_low_rank_factors_that_would_have_no_effect(path, format, options, message):
    _, edit = shared(TinyBackbone, "full")
    with pytest.raises(ErasureError, match=message):
        export_edit(edit, path, format, **options)


def test_half_the_strength_is_half_the_difference(tmp_path):
    _, edit = erased(TinyBackbone, "closed")
    export_edit(edit, tmp_path / "whole.safetensors", "diff")
    edit.strength = 0.5
    export_edit(edit, tmp_path / "half.safetensors", "diff")
    whole, half = (load_file(tmp_path / f"{n}.safetensors") for n in ("whole", "half"))
    assert all(torch.allclose(half[name], whole[name] / 2, atol=1e-6) for name in whole)


@pytest.mark.parametrize(
    ("method", "strength", "format", "message"),
    [
        ("closed", 0, "diff.safetensors", "needs an edit with an effect; found one of strength 0"),
        ("lora", 0, "lora.safetensors", "needs an edit with an effect; found one of strength 0"),
        ("gated", 0.5, "adapters.safetensors", "holds an edit of strength 1; found 0.5"),
    ],
)
def test_a_strength_that_a_file_cannot_hold(tmp_path, method, strength, format, message):
    _, edit = erased(TinyBackbone, method)
    edit.strength = strength
    with pytest.raises(ErasureError, match=message):
        edit.export(tmp_path / format, format.partition(".")[0])
    assert not list(tmp_path.iterdir())


def with_lora(pipeline):
    config = LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False)
    pipeline.unet.add_adapter(config)


def offloaded(pipeline):
    pipeline.enable_sequential_cpu_offload(device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_lora, r"unet without LoRA layers.*Call pipeline.unload_lora_weights\(\) first"),
        (offloaded, r"meta device.*pipeline.remove_all_hooks\(\) first"),
    ],
)
def test_whole_weights_that_could_not_be_read_are_not_written(tmp_path, change, message):
    pipeline, edit = erased(TinyBackbone, "closed")
    change(pipeline)
    for options in ({}, {"layout": "original"}):
        with pytest.raises(ErasureError, match=message):
            edit.export(tmp_path / "part", "component", **options)
    with pytest.raises(ErasureError, match=message):
        edit.export(tmp_path / "whole", "diffusers")
    assert not list(tmp_path.iterdir())
    edit.export(tmp_path / "edit.safetensors", "diff")


@pytest.mark.parametrize("format", ["kohya-lora", "diff"])
def test_another_pipeline_of_the_same_components_has_the_same_keys(tmp_path, format):
    pipeline, edit = erased(TinyBackbone, "text")
    edit.export(tmp_path / "a.safetensors", format)
    other = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    export_edit(edit, tmp_path / "b.safetensors", format, pipeline=other)
    one, same = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert one.keys() == same.keys()
    assert any(name.startswith(("lora_te_", "text_encoders.clip_l.")) for name in one)
    metadata = [safe_open(tmp_path / f"{n}.safetensors", "pt").metadata() for n in "ab"]
    assert metadata[0] == metadata[1]


@pytest.mark.parametrize("options", [{"rank": 2.5}, {"rank": "4"}, {"images": 1.5}])
def test_ranks_and_images_are_whole_numbers(path, options):
    _, edit = shared(TinyBackbone, "closed")
    (name,) = options
    with pytest.raises(ErasureError, match=f"needs a whole number as {name}; found"):
        export_edit(edit, path, "lora", **options)
    assert not path.exists()


def test_whole_weights_hold_no_edit_on_top(tmp_path):
    pipeline, edit = erased(TinyBackbone, "closed")
    alone = {name: value.clone() for name, value in weights(pipeline).items()}
    above = erase(pipeline, "star", method="UCE", anchor="dog", **QUICK)
    for format in ("component", "diffusers"):
        with pytest.raises(ErasureError, match=r"found UCE of star in it too. Remove it first"):
            edit.export(tmp_path / format, format)
    above.export(tmp_path / "both", "diffusers")  # with the one that it is based on
    both = weights(pipeline)
    assert_weights(DiffusionPipeline.from_pretrained(tmp_path / "both"), both)
    above.remove()
    edit.export(tmp_path / "one", "diffusers")
    assert_weights(DiffusionPipeline.from_pretrained(tmp_path / "one"), alone)


def test_images_of_an_offloaded_pipeline_are_not_compared(tmp_path):
    pipeline, edit = erased(TinyBackbone, "closed")
    offloaded(pipeline)
    with pytest.raises(ErasureError, match="meta device"):
        edit.export(tmp_path / "edit.safetensors", "lora", images=1)
    assert not list(tmp_path.iterdir())


def test_the_original_layout_has_no_copies_of_fused_projections(tmp_path):
    pipeline, edit = erased(TinyBackbone, "closed")
    edit.export(tmp_path / "plain", "component", layout="original")
    pipeline.fuse_qkv_projections()
    edit.export(tmp_path / "fused", "component", layout="original")
    plain, fused = (load_file(tmp_path / f / "unet.safetensors") for f in ("plain", "fused"))
    assert plain.keys() == fused.keys()


@pytest.mark.parametrize("format", ["lora", "kohya-lora"])
def test_half_the_strength_is_half_of_the_edits_own_factors(tmp_path, format):
    _, edit = erased(TinyBackbone, "lora")
    export_edit(edit, tmp_path / "whole.safetensors", format)
    edit.strength = 0.5
    exported = export_edit(edit, tmp_path / "half.safetensors", format)
    whole, half = (load_file(tmp_path / f"{n}.safetensors") for n in ("whole", "half"))
    ups = [name for name in whole if "lora_B" in name or "lora_up" in name]
    assert all(torch.allclose(half[name], whole[name] / 2) for name in ups)
    assert all(torch.equal(half[name], whole[name]) for name in whole.keys() - {*ups})
    assert exported.ranks == (2, 2)


@pytest.mark.parametrize("format", ["lora", "kohya-lora"])
def test_factors_of_an_edit_of_other_weights_are_those_of_the_pipeline(path, format):
    """Such an edit has its own values, of which its factors are the difference from others."""
    _, edit = shared(TinyBackbone, "lora")
    pipeline = stock(TinyBackbone)
    for parameter in pipeline.unet.parameters():
        parameter.data.mul_(1.01)
    other = copy.deepcopy(pipeline)
    apply_edit(type(edit)(edit.tensors, edit.metadata), pipeline, transfer=True).export(
        path, format, energy=1
    )
    other.load_lora_weights(str(path))
    assert (latents(other) - latents(pipeline)).abs().max() < 1e-3 * latents(pipeline).abs().max()


@pytest.mark.parametrize("format", ["lora", "kohya-lora"])
def test_factors_above_a_closed_form_are_exported_with_its_change(path, format):
    pipeline = stock(TinyBackbone)
    settings = {"method": "RealEra", "merge": False, "steps": 1, "anchor": "dog"}
    erase(pipeline, "cat", **settings, **QUICK).export(path, format, energy=1)
    other = stock(TinyBackbone)
    other.load_lora_weights(str(path))
    assert (latents(other) - latents(pipeline)).abs().max() < 1e-3 * latents(pipeline).abs().max()


@pytest.mark.parametrize("left", [0.5, None])
def test_a_checkpoint_is_what_the_pipeline_is(left, tmp_path):
    """Also once the edit beneath has another strength, or has gone."""
    pipeline = stock(TinyBackbone)
    source = write_original(original_tensors(pipeline), tmp_path / "plain.safetensors")
    first = erase(pipeline, Concept("house", "dog"), method="UCE", **QUICK)
    second = erase(pipeline, Concept("cat", "dog"), method="UCE", **QUICK)
    both = {name: value.clone() for name, value in original_tensors(pipeline).items()}
    if left:
        first.strength = left
    else:
        first.remove()
    expected = original_tensors(pipeline)
    assert not all(torch.allclose(both[name], expected[name], atol=1e-6) for name in expected)
    second.export(tmp_path / "new.safetensors", "checkpoint", checkpoint=source)
    written = load_file(tmp_path / "new.safetensors")
    assert all(torch.allclose(written[name], expected[name], atol=1e-6) for name in expected)


def test_a_pipeline_that_is_given_is_left_as_it_was(path):
    _, edit = shared(TinyBackbone, "closed")
    loaded = type(edit)(edit.tensors, edit.metadata)
    other = stock(TinyBackbone)
    before = latents(other)
    export_edit(loaded, path, "lora", pipeline=other)
    assert torch.equal(latents(other), before)


def test_the_strength_in_a_pipeline_that_is_given_is_left_as_it_was(tmp_path):
    """The file is exported at full strength, whatever the pipeline's is."""
    pipeline, edit = erased(TinyBackbone, "closed")
    whole = export_edit(edit, tmp_path / "whole.safetensors", "diff")
    edit.strength = 0.5
    before = latents(pipeline)
    file = edit.save(tmp_path / "edit.safetensors")
    from_file = export_edit(file, tmp_path / "from_file.safetensors", "diff", pipeline=pipeline)
    one, other = load_file(whole.path), load_file(from_file.path)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert edit.strength == 0.5
    assert torch.equal(latents(pipeline), before)


@pytest.mark.parametrize(
    ("family", "width", "version", "second"),
    [
        (TinyBackbone, 32, "sd_v1", "False"),
        (TinyBackbone, 1024, "sd_v2", "True"),
        (TinyXL, 1024, "sdxl_base_v1-0", "False"),
        (TinySD3, 1024, None, "False"),
    ],
)
def test_a1111_lists_a_kohya_lora_for_its_own_version(family, width, version, second):
    """What its ``detect_version`` reads; it takes all else that has metadata for version 1."""
    pipeline = stock(family)
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    modules = {name: torch.nn.Linear(1, 1)}
    modules[name].config = SimpleNamespace(cross_attention_dim=width)
    read = kohya_metadata({"a.alpha": torch.tensor(2.0)}, "a", modules, type(pipeline).__name__)
    assert (read.get("ss_base_model_version"), read["ss_v2"]) == (version, second)


def test_a_pipeline_without_its_second_text_encoder_is_of_its_family(path):
    """As it is loaded for prompts that are encoded already."""
    _, edit = shared(TinyXL, "closed")
    pipeline = stock(TinyXL)
    pipeline.text_encoder_2 = None
    export_edit(
        load_edit(edit.save(path.with_name("edit.safetensors"))),
        path,
        "kohya-lora",
        pipeline=pipeline,
    )
    with safe_open(path, "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"


def documented_reader():
    """The code block of docs/export.md that reads gated adapters without the package."""
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    code = re.search(r"```python\n(import json.*?)```", text, re.DOTALL)[1]
    assert "erasure_lightning" not in code
    space = {}
    exec(code, space)
    return space["attach_adapters"]


@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        (TinyBackbone, "SPM", {"transport": "rescaled"}),
        (TinyBackbone, "SPM", {"transport": "none"}),
        (TinyFlux, "SPM", {}),
        (TinyBackbone, "Receler", {"attack_steps": 2}),
        (TinyFlux, "Receler", {"attack_steps": 2}),
        (TinySD3, "Receler", {"attack_steps": 2}),
    ],
)
def test_gated_adapters_are_no_weights(family, method, options, path):
    pipeline = stock(family)
    bank = TrajectoryBank(trajectories=2, steps=2)
    options = options | {"steps": 2, "lr": 0.1, "warmup": 0, "latents": bank}
    edit = erase(pipeline, "cat", method=method, anchor="dog", **options, **QUICK)
    with pytest.raises(ErasureError, match="act by prompt or image .* Export it as `adapters`"):
        export_edit(edit, path, "lora")
    export_edit(edit, path, "adapters")
    expected = latents(pipeline)
    for read in (lambda other: apply_edit(path, other), lambda o: documented_reader()(o, path)):
        other = stock(family)
        assert not torch.allclose(latents(other), expected, atol=1e-4)
        read(other)
        assert torch.allclose(latents(other), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "loar"}, "Did you mean 'lora'"),
        ({"format": "lora", "rank": 0}, "rank of at least 1; found 0"),
        ({"format": "lora", "energy": 1.5}, "energy above 0 and at most 1"),
        ({"format": "checkpoint"}, "--checkpoint FILE"),
        ({"format": "checkpoint", "checkpoint": "nowhere.safetensors"}, "No checkpoint at nowhere"),
        ({"format": "adapters"}, "changes weights"),
        ({"format": "lora", "dtype": "half"}, "dtype needs one of"),
        ({"format": "component", "dtype": "float16"}, "dtype is for"),
        ({"format": "lora", "path": "no-ending"}, "ends in .safetensors"),
        ({"format": "component", "layout": "ldm"}, "layout needs one of"),
        ({"format": "diff", "layout": "original"}, "layout is for component"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(options, message, path):
    _, edit = shared(TinyBackbone, "closed")
    path = path.with_name(options.pop("path", path.name))
    with pytest.raises(ErasureError, match=message):
        export_edit(edit, path, **options)
    assert not list(path.parent.iterdir())


def test_another_models_checkpoint_is_refused(tmp_path):
    _, edit = shared(TinyBackbone, "closed")
    other = write_original(
        original_tensors(TinyBackbone(seed=1).to_pipeline()), tmp_path / "o.safetensors"
    )
    with pytest.raises(ErasureError, match="the weights of the edit's base model"):
        export_edit(edit, tmp_path / "e.safetensors", "checkpoint", checkpoint=other)
    xl = write_original(original_tensors(stock(TinyFlux)), tmp_path / "flux.safetensors")
    with pytest.raises(ErasureError, match="another family, or lacks this component"):
        export_edit(edit, tmp_path / "e.safetensors", "checkpoint", checkpoint=xl)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(other.read_bytes()[:-10])
    with pytest.raises(ErasureError, match="needs to be a whole safetensors file"):
        export_edit(edit, tmp_path / "e.safetensors", "checkpoint", checkpoint=cut)
    assert {p.name for p in tmp_path.iterdir()} == {
        "o.safetensors",
        "flux.safetensors",
        "cut.safetensors",
    }


def test_an_edit_in_a_pipeline_exports_itself(path, tmp_path):
    _, edit = shared(TinyBackbone, "closed")
    edit.export(path, "diff")
    export_edit(edit, tmp_path / "other.safetensors", "diff")
    own, other = load_file(path), load_file(tmp_path / "other.safetensors")
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    with pytest.raises(ErasureError, match="needs to be applied to a pipeline first"):
        type(edit)(edit.tensors, edit.metadata).export(tmp_path / "third.safetensors")


def test_an_existing_file_is_never_replaced(path):
    _, edit = shared(TinyBackbone, "closed")
    path.write_text("mine")
    with pytest.raises(ErasureError, match=r"out\.safetensors exists"):
        export_edit(edit, path, "lora")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("format", ["lora", "checkpoint", "component"])
def test_a_full_disk_leaves_nothing(format, tmp_path, monkeypatch):
    _, edit = shared(TinyBackbone, "closed")
    source = write_original(original_tensors(stock(TinyBackbone)), tmp_path / "m.safetensors")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    end = "" if format == "component" else ".safetensors"
    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("diffusers.ModelMixin.save_pretrained", full)
    with pytest.raises(ErasureError, match="No space left on device"):
        export_edit(edit, tmp_path / f"out{end}", format, checkpoint=source)
    assert {p.name for p in tmp_path.iterdir()} == {"m.safetensors"}


def test_a_family_without_a_place_for_it_is_refused(path):
    _, edit = shared(TinyPixArt, "closed")
    with pytest.raises(ErasureError, match="has none. Export it as"):
        export_edit(edit, path, "diff")
    with pytest.raises(ErasureError, match="which has no load_lora_weights. Export it as"):
        export_edit(edit, path, "lora")


def other_edit(kind, family, folder):
    """The file of an edit on an edit of half strength, of a composition or of an imported edit."""
    pipeline = stock(family)
    text = {"method": "SAGE", "lr": 0.01, "warmup": 0, "steps": 2, "retention": []}
    if kind == "import":
        family().save(folder / "model")
        state = {n: w for n, w in pipeline.unet.state_dict().items() if "attn2.to_v" in n}
        save_file({n: w + torch.randn_like(w) / 9 for n, w in state.items()}, folder / "official")
        (folder / "official").rename(folder / "official.safetensors")
        official = folder / "official.safetensors", "speed", str(folder / "model")
        return import_edit(*official, folder / "last.safetensors", ["cat"]).path
    first = erase(pipeline, Concept("house", "dog"), method="UCE", **QUICK)
    first.remove()
    first.save(folder / "first" / "edit.safetensors")
    if kind == "compose":
        second = erase(pipeline, Concept("cat", "dog"), **text, **QUICK)
        second.remove()
        return compose(first, second).save(folder / "last" / "edit.safetensors")
    apply_edit(folder / "first", pipeline).strength = 0.5
    arguments = text if kind == "on another component" else {"method": "UCE"}
    second = erase(pipeline, Concept("cat", "dog"), **arguments, **QUICK)
    return second.save(folder / "last" / "edit.safetensors")


def weights(pipeline):
    parts = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    modules = {name: getattr(pipeline, name, None) for name in parts}
    return {
        f"{component}.{name}": value
        for component, module in modules.items()
        if module is not None
        for name, value in module.state_dict().items()
    }


def assert_weights(pipeline, expected, tolerance=0.0):
    applied = weights(pipeline)
    assert applied.keys() == expected.keys()
    assert all(torch.allclose(applied[n], expected[n], rtol=0, atol=tolerance) for n in applied)


ORIGINS = [
    ("on the same component", TinyBackbone),
    ("on the same component", TinyFlux),
    ("on another component", TinyBackbone),
    ("compose", TinyXL),
    ("import", TinyBackbone),
]


@pytest.fixture(scope="module", params=ORIGINS, ids=lambda case: f"{case[0]}-{case[1].__name__}")
def origin(request, tmp_path_factory):
    """An edit's file, and three pipelines: with no edit, with those beneath it, with all."""
    kind, family = request.param
    file = other_edit(kind, family, tmp_path_factory.mktemp("origin"))
    plain, beneath, edited = (stock(family) for _ in range(3))
    load_edit(file).apply_base_edits(beneath)
    apply_edit(file, edited)
    return file, plain, beneath, edited


def test_whole_models_hold_the_edits_beneath_too(origin, tmp_path):
    file, plain, beneath, edited = origin
    before, expected = weights(plain), weights(edited)
    changed = {name.partition(".")[0] for name in before if not before[name].equal(expected[name])}
    export_edit(file, tmp_path / "whole", "diffusers", pipeline=copy.deepcopy(plain))
    assert_weights(DiffusionPipeline.from_pretrained(tmp_path / "whole"), expected)
    own = {"pipeline": copy.deepcopy(plain)}
    export_edit(file, tmp_path / "original", "component", layout="original", **own)
    assert {path.stem for path in (tmp_path / "original").iterdir()} == changed
    export_edit(file, tmp_path / "parts", "component", **own)
    other = copy.deepcopy(plain)
    for folder in (tmp_path / "parts").iterdir():
        setattr(other, folder.name, type(getattr(other, folder.name)).from_pretrained(folder))
    assert_weights(other, expected)
    tensors = original_tensors(edited)
    for name, model in (("plain", plain), ("beneath", beneath)):
        source = write_original(original_tensors(model), tmp_path / f"{name}.safetensors")
        target = tmp_path / f"{name}-edited.safetensors"
        export_edit(file, target, "checkpoint", checkpoint=source, **own)
        written, former = load_file(target), load_file(source)
        assert written.keys() == tensors.keys()
        assert all(torch.allclose(written[n], tensors[n], atol=1e-6) for n in tensors)
        assert any(not torch.equal(written[n], former[n]) for n in tensors)
    assert_weights(own["pipeline"], before)


def test_differences_are_added_to_the_edits_beneath(origin, path):
    file, plain, beneath, edited = origin
    export_edit(file, path, "diff", pipeline=copy.deepcopy(plain))
    other = copy.deepcopy(beneath)
    load_lora(load_file(path), other)
    assert_weights(other, weights(edited), 1e-6)
    lora = path.with_name("lora.safetensors")
    exported = export_edit(file, lora, "lora", energy=1, pipeline=copy.deepcopy(plain))
    other = copy.deepcopy(plain)
    load_edit(file).apply_base_edits(other)
    other.load_lora_weights(str(lora))
    other.fuse_lora(components=other._lora_loadable_modules)
    other.unload_lora_weights()
    if not exported.left_out:  # biases and norms of text encoders
        assert_weights(other, weights(edited), 1e-4)


NORMS = """
import json
from erasure_lightning.edits.export_format import PluginFormat

class Norms(PluginFormat):
    suffix = ".json"

    def write(self, path, changes, pipeline, metadata, dtype):
        norms = {name: float(c.difference.to(dtype).norm()) for name, c in changes.items()}
        path.write_text(json.dumps({"on": type(pipeline).__name__, "norms": norms}))
        if "fails" in str(self):
            raise OSError(28, "No space left on device")
"""


def test_a_package_adds_a_format(tmp_path, monkeypatch, capsys):
    _, edit = shared(TinyBackbone, "closed")
    out = tmp_path / "out"
    with pytest.raises(ErasureError, match="needs to be one of .*, adapters; found 'norms'"):
        export_edit(edit, out / "a.json", "norms")  # the control
    group = "erasure_lightning.formats"
    targets = {"norms": "norm_format:Norms", "fails": "norm_format:Norms"}
    install(tmp_path, "norms", targets, {"norm_format.py": NORMS}, group=group)
    install(tmp_path, "gone", {"gone": "gone_away:Gone", "wrong": "json:dumps"}, group=group)
    monkeypatch.syspath_prepend(tmp_path)
    assert export_edit(edit, out / "a.json", "norms", dtype="float16").format == "norms"
    written = json.loads((out / "a.json").read_text())
    assert written["on"] == "StableDiffusionPipeline"
    assert written["norms"].keys() == edit.tensors.keys()
    assert min(written["norms"].values()) > 0
    for name, message in {
        "nroms": "Did you mean 'norms'",
        "norms": r"needs a name that ends in \.json",
        "fails": r"ends in \.json",
        "gone": r"The format gone could not be loaded from gone 1\.0 .* No module named 'gone_aw",
        "wrong": "expected a subclass of PluginFormat",
    }.items():
        with pytest.raises(ErasureError, match=message):
            edit.export(out / "b.bin", name)
    with pytest.raises(ErasureError, match="No space left"):
        edit.export(out / "b.json", "fails")
    assert [path.name for path in out.iterdir()] == ["a.json"]
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "adapters, fails, gone, norms, wrong." in " ".join(capsys.readouterr().out.split())
