"""LoRAs fused before an erasure: equal to stock, in the fingerprints, and refused in one line."""

import diffusers
import pytest
import torch
from original_layouts import original_tensors, write_original
from safetensors.torch import load_file, save_file
from torch import nn

from erasure_lightning import Concept, apply_edit, erase, export_edit, load_edit
from erasure_lightning.__main__ import main
from erasure_lightning.adapters.base import AdapterPlan
from erasure_lightning.adapters.lora import add_lora, lora_layers, remove_lora
from erasure_lightning.api.demo import SideBySide
from erasure_lightning.api.load import load_edited
from erasure_lightning.backbones.lora_files import fuse_loras
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinyPixArt, TinySD3, TinyXL
from erasure_lightning.edits.applied import Edit
from erasure_lightning.edits.components import component_fingerprints
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import UCE


def lora(model, file, ending="to_k", kohya=False, seed=0):
    """A LoRA of a model's denoiser, as diffusers or sd-scripts write it."""
    generator = torch.Generator().manual_seed(seed)
    part = model.components["denoiser"]
    tensors = {}
    for name, layer in model.denoiser.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(ending):
            out, width = layer.weight.shape
            down, up = (torch.randn(*s, generator=generator) for s in ((2, width), (out, 2)))
            if kohya:
                key = f"lora_unet_{name.replace('.', '_')}"
                tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
                tensors[f"{key}.alpha"] = torch.tensor(1.0)
            else:
                key = f"{part}.{name}"
                tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    save_file(tensors, file)
    return str(file)


@pytest.mark.parametrize("build", [TinyBackbone, TinyXL, TinySD3, TinyFlux])
def test_weights_equal_stock(build, tmp_path):
    model, theirs = build(), build()
    stock = theirs.to_pipeline()
    first = lora(model, tmp_path / "first.safetensors")
    second = lora(model, tmp_path / "second.safetensors", ending="to_v", seed=1)
    kinds = [type(module) for module in model.modules()]
    fuse_loras(model, [f"{first}:0.5", second])
    for file, scale in ((first, 0.5), (second, 1.0)):
        stock.load_lora_weights(file)
        stock.fuse_lora(lora_scale=scale)
        stock.unload_lora_weights()
    expected = theirs.state_dict()
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert model.fingerprint() != build().fingerprint()
    assert [type(module) for module in model.modules()] == kinds
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("build", [TinyBackbone, TinyXL, TinySD3, TinyFlux])
def test_layers_of_text_encoders_are_fused_too(build, tmp_path):
    """Every one that diffusers reads: `fuse_lora` of its FLUX leaves the text encoder's out."""
    model = build()
    tensors, expected = load_file(lora(model, tmp_path / "x.safetensors")), {}
    towers = {"text_encoder": 0, "text_encoder_2": 1}.items()
    for part, number in [*towers][: 1 if build in (TinyBackbone, TinyFlux) else 2]:
        encoder = model.towers[number].model
        name = next(name for name, _ in encoder.named_modules() if name.endswith("q_proj"))
        weight = encoder.get_submodule(name).weight
        down, up = torch.randn(2, weight.shape[1]), torch.randn(len(weight), 2)
        key = f"{part}.{name}"
        tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
        expected[weight] = weight + up @ down
    save_file(tensors, tmp_path / "both.safetensors")
    fuse_loras(model, [str(tmp_path / "both.safetensors")])
    assert expected
    for weight, sum_of_both in expected.items():
        assert torch.allclose(weight, sum_of_both, atol=1e-5)
    assert not lora_layers(model)


def test_kohyas_alpha_counts(tmp_path):
    model = TinyBackbone()
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    file = lora(model, tmp_path / "kohya.safetensors", kohya=True)
    fuse_loras(model, [file])
    tensors = load_file(file)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    key = f"lora_unet_{name.replace('.', '_')}"
    change = tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"] / 2
    after = model.denoiser.state_dict()[f"{name}.weight"]
    assert torch.allclose(after, before[f"{name}.weight"] + change, atol=1e-5)


def test_adapters_can_be_added_later(tmp_path):
    model = TinyBackbone()
    fuse_loras(model, [lora(model, tmp_path / "x.safetensors")])
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    add_lora(model.denoiser, AdapterPlan("lora", [name], {"rank": 1}))
    assert list(lora_layers(model.denoiser)) == [name]
    remove_lora(model.denoiser)


def test_adapters_can_be_removed_and_added_again():
    model = TinyBackbone()
    plan = AdapterPlan(
        "lora", ["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"], {"rank": 1}
    )
    for _ in range(2):
        add_lora(model.denoiser, plan)
        assert list(lora_layers(model.denoiser)) == plan.layers
        remove_lora(model.denoiser)
        assert not lora_layers(model.denoiser)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    TinyBackbone().save(folder / "pipeline")
    lora(TinyBackbone(), folder / "style.safetensors")
    return folder


def edit(saved, loras, tmp_path):
    module = UCE(concepts=[Concept("cat", "dog")], backbone=str(saved / "pipeline"), loras=loras)
    module.configure_model()
    name = next(iter(module.editable()))
    module.write({name: module.backbone.get_parameter(name) + 1})
    module.save_edit(tmp_path / "edit.safetensors")
    return tmp_path / "edit.safetensors"


def test_commands_that_load_the_base_model_fuse_its_loras(saved, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    style = str(saved / "style.safetensors")
    edit(saved, [style], run)
    edit(saved, [style], other)
    metadata = load_edit(run).metadata
    values = {name: value + 1 for name, value in load_edit(run).tensors.items()}
    Edit(values, metadata).save(other / "edit.safetensors")
    assert f"base model: {saved / 'pipeline'} with {style}" in load_edit(run).report()
    assert main(["export", str(run), "--to", "diff", "--out", str(tmp_path / "a.safetensors")]) == 0
    moved = tmp_path / "moved"
    TinyBackbone().save(moved)
    options = ["--out", str(tmp_path / "b.safetensors"), "--backbone", str(moved)]
    assert main(["export", str(run), "--to", "diff", *options]) == 0
    one, same = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert main(["push", str(run), "me/x", "--to", "lora", "--no_gallery"]) == 0
    assert "Base model: …/pipeline with …/style.safetensors" in (
        run / "hub" / "README.md"
    ).read_text(encoding="utf-8")
    assert SideBySide(run, steps=2).generate("a cat", 0, 1.0)
    both = tmp_path / "both"
    assert main(["compose", str(run), str(other), "--out", str(both)]) == 0
    assert (
        load_edited(both / "edit.safetensors").original.fingerprint()
        == (metadata["backbone_fingerprint"])
    )


def test_a_base_model_that_has_moved_is_named_to_every_command(saved, tmp_path, monkeypatch):
    runs = [tmp_path / "one", tmp_path / "other"]
    for run in runs:
        edit(saved, [], run)
    second = load_edit(runs[1])
    values = {name: value + 1 for name, value in second.tensors.items()}
    Edit(values, second.metadata).save(runs[1] / "edit.safetensors")
    for run in runs:  # as if the folder had been renamed
        lost = load_edit(run)
        lost.metadata["backbone"] = str(tmp_path / "gone")
        lost.save(run / "edit.safetensors")
    one, other = map(str, runs)
    both, place = tmp_path / "both", str(saved / "pipeline")
    commands = [
        ["push", one, "me/x", "--to", "diff", "--no_gallery"],
        ["compose", one, other, "--out", str(both)],
    ]
    assert [main(command) for command in commands] == [2, 2]  # the control: it is not found
    assert [main([*command, "--backbone", place]) for command in commands] == [0, 0]
    assert (runs[0] / "hub" / "diff.safetensors").exists()
    assert load_edit(both).metadata["backbone"] == place
    assert load_edited(both / "edit.safetensors").backbone.name == place
    served = {}
    serve = "erasure_lightning.api.demo.serve_demo"
    monkeypatch.setattr(serve, lambda run, **options: served.update(options))
    assert main(["demo", one, "--backbone", place]) == 0
    assert served["backbone"] == place
    assert SideBySide(one, steps=2, backbone=place).backbone.name == place


def test_a_base_model_without_a_name_is_to_be_passed(tmp_path):
    erased = erase(TinyBackbone().to_pipeline(), "cat", "UCE", anchor="dog", progress_bar=False)
    with pytest.raises(ErasureError, match="UCE of cat needs its base model.*pass it as pipeline"):
        export_edit(erased.save(tmp_path / "edit.safetensors"), tmp_path / "a.safetensors")


def test_an_edit_is_of_the_fused_model(saved, tmp_path):
    file = edit(saved, [str(saved / "style.safetensors")], tmp_path)
    module = load_edited(file)
    fused = TinyBackbone()
    fuse_loras(fused, [str(saved / "style.safetensors")])
    assert module.original.fingerprint() == fused.fingerprint() != TinyBackbone().fingerprint()
    plain = diffusers.StableDiffusionPipeline.from_pretrained(saved / "pipeline")
    with pytest.raises(ErasureError, match="to be the unet of its base model"):
        apply_edit(file, plain)
    plain.load_lora_weights(str(saved / "style.safetensors"))
    plain.fuse_lora()
    plain.unload_lora_weights()
    assert apply_edit(file, plain).metadata["transferred"] == []


def test_the_command_line_takes_a_checkpoint_and_loras(saved, tmp_path):
    pipeline = TinyBackbone().to_pipeline()
    file = write_original(original_tensors(pipeline), tmp_path / "model.safetensors")
    words = ["--model", "UCE", "--model.concepts", "[{name: cat, anchor: dog}]"]
    words += ["--model.backbone", f"{file}@{saved / 'pipeline'}"]
    words += ["--model.loras", f"[{saved / 'style.safetensors'}:0.5]"]
    words += ["--measure", "false", "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *words]) == 0
    module = load_edited(tmp_path / "run" / "edit.safetensors")
    fused = TinyBackbone()
    fuse_loras(fused, [f"{saved / 'style.safetensors'}:0.5"])
    assert module.original.fingerprint() == fused.fingerprint()
    assert module.fingerprints["unet"] != component_fingerprints(pipeline.unet)


class TestRefused:
    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ("nowhere.safetensors", "No LoRA at nowhere.safetensors"),
            ("nowhere.safetensors:0.5", "No LoRA at nowhere.safetensors: there"),
            ("{}/style.bin", r"needs to be safetensors; found .bin. Pickles"),
            ("{}/pipeline/unet/diffusion_pytorch_model.safetensors", "low-rank factors .* none"),
            ("{}/style.safetensors:nan", "style.safetensors needs a finite weight; found nan"),
            ("{}/style.safetensors:-inf", "style.safetensors needs a finite weight; found -inf"),
            ("{}/cut.safetensors", "needs to be a whole safetensors file"),
        ],
    )
    def test_files(self, saved, entry, message):
        (saved / "style.bin").write_bytes(b"x")
        (saved / "cut.safetensors").write_bytes(b"x" * 20)
        with pytest.raises(ErasureError, match=message):
            fuse_loras(TinyBackbone(), [entry.format(saved)])

    @pytest.mark.parametrize("family", [TinyXL, TinyFlux, TinySD3])
    def test_of_another_family(self, family, tmp_path, capfd):
        file = lora(family(), tmp_path / "other.safetensors")
        capfd.readouterr()
        with pytest.raises(
            ErasureError, match=r"layers of TinyBackbone \(StableDiffusionPipeline\); found .*other"
        ) as caught:
            fuse_loras(TinyBackbone(), [file])
        assert "\n" not in str(caught.value)
        assert not capfd.readouterr().err

    def test_a_family_without_loras(self, saved):
        with pytest.raises(ErasureError, match="found PixArtSigmaPipeline"):
            fuse_loras(TinyPixArt(), [str(saved / "style.safetensors")])

    def test_an_object_has_its_own(self, saved):
        with pytest.raises(ErasureError, match="loras needs a backbone by name"):
            UCE(
                concepts=[Concept("cat", "dog")],
                backbone=TinyBackbone(),
                loras=[str(saved / "style.safetensors")],
            )
