"""Files of official code, in their exact layouts with random values, as edits of ours."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from erasure_lightning import apply_edit, import_edit, load_edit
from erasure_lightning.__main__ import main
from erasure_lightning.api.load import load_edited
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.lora_files import fuse_loras
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.imported import Imported


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    TinyBackbone().save(folder / "sd")
    TinyFlux().save(folder / "flux")
    return folder


@pytest.fixture
def base(models):
    return str(models / "sd")


def layers(unet):
    """Linear layers and convolutions, as all of these codes choose from."""
    return {n: m for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def random(shape, seed=[0]):  # noqa: B006
    seed[0] += 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed[0]))


def chosen(denoiser, choose, dtype=torch.float32):
    """New values of the parameters of layers whose names are chosen."""
    return {
        f"{name}.{own}": random(p.shape).to(dtype)
        for name, layer in layers(denoiser).items()
        if choose(name)
        for own, p in layer.named_parameters()
    }


#: By ``--train_method``, as in esd_sd.py and esd_sdxl.py.
ESD = {
    "esd-x": lambda name: "attn2" in name,
    "esd-x-strict": lambda name: "attn2.to_k" in name or "attn2.to_v" in name,
    "esd-u": lambda name: "attn2" not in name,
    "esd-all": lambda name: True,
    "selfattn": lambda name: "attn1" in name,
    "esd-u of SDXL": lambda n: "attn2" not in n and "emb" not in n and "block" in n,
}


def factors(unet, choose, rank, alpha):
    """SPM's and LECO's state: a buffer and two factors for each layer that is chosen."""
    tensors = {}
    for name, layer in layers(unet).items():
        if choose(name):
            key = f"lora_unet_{name.replace('.', '_')}"
            shape = layer.weight.shape
            tensors[f"{key}.lora_down.weight"] = random((rank, *shape[1:]))
            ones = (1,) * (len(shape) - 2)
            tensors[f"{key}.lora_up.weight"] = random((shape[0], rank, *ones))
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def in_transformer(name):
    return re.search(r"attentions\.\d+\.", name)


def test_every_train_method_of_esd(base, tmp_path):
    unet = TinyBackbone().denoiser
    for number, choose in enumerate(ESD.values()):
        values = chosen(unet, choose, torch.bfloat16)  # its precision
        file = tmp_path / f"esd-van_gogh-from-van_gogh-{number}.safetensors"
        save_file(values, file)
        edit = import_edit(file, "esd", base, tmp_path / f"{number}.safetensors")
        assert {n.removeprefix("unet."): v for n, v in edit.tensors.items()}.keys() == values.keys()
        assert all(torch.equal(edit.tensors[f"unet.{n}"], v.float()) for n, v in values.items())
        assert edit.concepts == ["van gogh"]


@pytest.mark.parametrize(
    "choose",
    [
        lambda name: "attn" in name,
        lambda name: "attn" in name and ("to_k" in name or "to_v" in name),
    ],
    ids=["esd-x", "esd-x-strict"],
)
def test_esd_on_flux_names_its_concept_in_the_metadata(models, tmp_path, choose):
    values = chosen(TinyFlux().denoiser, choose, torch.bfloat16)
    file = tmp_path / "renamed.safetensors"
    about = {"format": "erasing-esd-v2", "component": "transformer", "erase_concept": "van gogh"}
    save_file(values, file, metadata=about)
    edit = import_edit(file, "esd", str(models / "flux"), tmp_path / "edit.safetensors")
    assert edit.tensors.keys() == {f"transformer.{name}" for name in values}
    assert edit.concepts == ["van gogh"]


def test_the_edit_acts_in_a_pipeline_and_as_a_module(base, tmp_path):
    values = chosen(TinyBackbone().denoiser, ESD["esd-x-strict"])
    save_file(values, tmp_path / "uce.safetensors")
    run = tmp_path / "run"
    import_edit(tmp_path / "uce.safetensors", "uce", base, run, ["cat"])
    pipeline = load_backbone(base).to_pipeline()
    assert apply_edit(run, pipeline).metadata["transferred"] == []
    state = pipeline.unet.state_dict()
    assert all(torch.equal(state[name], value) for name, value in values.items())
    module = load_edited(run / "edit.safetensors")
    assert type(module) is Imported
    own = module.backbone.denoiser.state_dict()
    assert all(torch.equal(own[name], value) for name, value in values.items())
    assert module.original.fingerprint() == TinyBackbone().fingerprint()
    metadata = load_edit(run).metadata
    assert metadata["imported"] == {"layout": "uce", "file": "uce.safetensors"}
    assert metadata["arguments"]["code"].startswith("rohitgandikota/unified-concept-editing @")


def test_uce_on_flux(models, tmp_path):
    names = ("context_embedder", "text_embedder.linear_1")
    denoiser = TinyFlux().denoiser
    values = chosen(denoiser, lambda name: name.endswith(names))
    values = {name: value for name, value in values.items() if name.endswith(".weight")}
    assert len(values) == 2
    save_file(values, tmp_path / "x.safetensors")
    edit = import_edit(
        tmp_path / "x.safetensors", "uce", str(models / "flux"), tmp_path / "run", ["cat"]
    )
    assert edit.tensors.keys() == {f"transformer.{name}" for name in values}


@pytest.mark.parametrize("parts", ["k", "v", "kv"])
def test_speed(base, tmp_path, parts):
    unet = TinyBackbone().denoiser
    values = chosen(unet, lambda n: any(n.endswith(f"attn2.to_{part}") for part in parts))
    save_file(values, tmp_path / "speed.safetensors")
    edit = import_edit(tmp_path / "speed.safetensors", "speed", base, tmp_path / "run", ["cat"])
    assert len(edit.tensors) == len(values)


LORAS = {
    "spm": ("spm", in_transformer, 1, 1.0, {"prompts": "pikachu,snoopy", "rank": "1"}),
    "leco": ("leco", in_transformer, 4, 1.0, {"prompts": '{"target": "pikachu", "a": 1}'}),
    "leco c3lier": (
        "leco",
        lambda n: in_transformer(n) or "resnets" in n or "samplers" in n,
        2,
        2.0,
        {"prompts": '{"target": "pikachu"}'},
    ),
    "leco of before": (
        "leco",
        lambda n: ".attn1." in n or ".attn2." in n,
        4,
        1.0,
        {"prompts": '{"target": "pikachu"}'},
    ),
}


@pytest.mark.parametrize(("layout", "choose", "rank", "alpha", "header"), LORAS.values(), ids=LORAS)
def test_factors_add_up(base, tmp_path, layout, choose, rank, alpha, header):
    unet = TinyBackbone().denoiser
    tensors = factors(unet, choose, rank, alpha)
    save_file(tensors, tmp_path / "x_last.safetensors", header)
    edit = import_edit(tmp_path / "x_last.safetensors", layout, base, tmp_path / "run")
    assert edit.metadata["concepts"][0]["name"] == "pikachu"
    assert len(edit.tensors) == len(tensors) // 3
    state = unet.state_dict()
    for name, value in edit.tensors.items():
        weight = state[name.removeprefix("unet.")]
        key = f"lora_unet_{name.removeprefix('unet.').removesuffix('.weight').replace('.', '_')}"
        down = tensors[f"{key}.lora_down.weight"]
        up = tensors[f"{key}.lora_up.weight"]
        change = torch.einsum("or,r...->o...", up.flatten(1), down) * alpha / rank
        assert torch.allclose(value, weight + change, atol=1e-5)


def test_diffusers_reads_the_same_factors_alike(base, tmp_path):
    """The same file as a LoRA, which diffusers fuses."""
    tensors = factors(TinyBackbone().denoiser, in_transformer, 4, 2.0)
    file = tmp_path / "x.safetensors"
    save_file(tensors, file)
    ours = import_edit(file, "leco", base, tmp_path / "leco", "cat")  # alone, or in a list
    theirs = import_edit(file, "diffusers-lora", base, tmp_path / "lora", ["cat"])
    assert ours.metadata["concepts"] == theirs.metadata["concepts"]
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.allclose(v, theirs.tensors[n], atol=1e-5) for n, v in ours.tensors.items())
    fused = load_backbone(base)
    fuse_loras(fused, [str(file)])
    pipeline = load_backbone(base).to_pipeline()
    theirs.apply(pipeline)
    state = pipeline.unet.state_dict()
    assert all(torch.equal(state[n], v) for n, v in fused.denoiser.state_dict().items())


def fused_pipeline(folder, choose):
    model = TinyBackbone()
    for name, value in chosen(model.denoiser, choose).items():
        model.denoiser.get_parameter(name).data = value
    model.save(folder)
    return folder


def test_mace(base, tmp_path):
    folder = fused_pipeline(tmp_path / "LoRA_fusion_model", ESD["esd-x-strict"])
    edit = import_edit(folder, "mace", base, tmp_path / "run", ["cat"])
    assert len(edit.tensors) == 8
    edit.apply(pipeline := load_backbone(base).to_pipeline())
    assert torch.equal(
        pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight,
        edit.tensors["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"],
    )
    other = fused_pipeline(tmp_path / "other", ESD["esd-x"])
    with pytest.raises(ErasureError, match=r"8 tensors that Shilin-LU/MACE.* found 12 unknown"):
        import_edit(other, "mace", base, tmp_path / "second", ["cat"])


def kv():
    return chosen(TinyBackbone().denoiser, ESD["esd-x-strict"])


def without_one(values):
    return dict(list(values.items())[1:])


def of_compvis(values):
    return {f"model.diffusion_model.{name}": value for name, value in values.items()}


def narrow(values):
    return {n: v[:, :-1].contiguous() for n, v in values.items()}


def not_finite(values):
    return {n: v / 0 for n, v in values.items()}


def original(values):
    return {n: TinyBackbone().denoiser.get_parameter(n).detach().clone() for n in values}


REFUSED = {
    "missing": (without_one, "8 tensors that .*unified.* found 1 missing"),
    "unknown": (of_compvis, r"found 8 missing .*; 8 unknown \(model.diffusion_model"),
    "of another shape": (
        narrow,
        r"of shape \[\d+, \d+\]; found \[\d+, \d+\]. It is of another base model",
    ),
    "not finite": (not_finite, "needs finite values; found NaN or infinity"),
    "no change": (original, "needs other weights; .* has those of the model itself"),
    "none": (lambda values: {"x": torch.zeros(1)}, r"found 8 missing .*; 1 unknown \(x"),
}


@pytest.mark.parametrize(("edit", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(base, tmp_path, edit, message):
    save_file(edit(kv()), tmp_path / "x.safetensors")
    with pytest.raises(ErasureError, match=message) as caught:
        import_edit(tmp_path / "x.safetensors", "uce", base, tmp_path / "run", ["cat"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_factors_are_refused_in_one_line(base, tmp_path):
    file = tmp_path / "x.safetensors"
    tensors = factors(TinyBackbone().denoiser, in_transformer, 1, 1.0)
    first = next(iter(tensors))
    cases = {
        "found one": {n: v for n, v in tensors.items() if n != first},
        "found lora_te": tensors | {"lora_te_text_model_x.alpha": torch.tensor(1.0)},
        r"needs factors of .*; found \[\d+": tensors | {first: torch.zeros(1, 3)},
        "found [0-9]+ missing": {
            n: v for n, v in tensors.items() if not n.startswith(first.split(".")[0])
        },
    }
    for message, content in cases.items():
        save_file(content, file)
        with pytest.raises(ErasureError, match=message):
            import_edit(file, "spm", base, tmp_path / "run", ["cat"])


def test_a_family_without_such_layers(models, tmp_path):
    save_file(kv(), tmp_path / "x.safetensors")
    with pytest.raises(ErasureError, match="needs a model with the layers that Ouxiang-Li/SPEED"):
        import_edit(tmp_path / "x.safetensors", "speed", str(models / "flux"), "out", ["cat"])


def test_other_mistakes(base, tmp_path):
    file = tmp_path / "x.safetensors"
    save_file(kv(), file)
    pickle = tmp_path / "speed.pt"
    torch.save(kv(), pickle)
    for message, arguments in {
        "No file at nowhere": ("nowhere", "uce", base, "out", ["cat"]),
        r"found .pt. Pickles can run code .*save_file\(torch.load": (
            *(pickle, "speed", base, "out", ["cat"]),
        ),
        "give them as concepts": (file, "uce", base, "out"),
        "x.safetensors exists already, and is not": (file, "uce", base, file, ["cat"]),
        "speed.pt exists already, and is not": (file, "uce", base, pickle, ["cat"]),
        "needs one of esd, uce, .* as layout .*--as": (file, "sage", base, "out", ["cat"]),
        "needs to be the folder of a pipeline": (file, "mace", base, "out", ["cat"]),
    }.items():
        with pytest.raises(ErasureError, match=message):
            import_edit(*arguments)


def test_commands_take_it(base, tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    save_file(kv(), file)
    run = tmp_path / "run"
    words = ["--as", "uce", "--backbone", base, "--out", str(run), "--concepts", "cat"]
    assert main(["import", str(file), *words]) == 0
    assert "Imported of cat" in capsys.readouterr().out
    small = ["--data.steps", "1", "--data.seeds", "2", "--data.others", "1"]
    assert main(["test", "--ckpt_path", str(run), *small]) == 0
    assert (run / "grid.png").exists() or list(run.glob("test*/grid.png"))
    assert main(["report", str(run), "--card"]) == 0
    card = (run / "model_card.md").read_text()
    assert "Imported" in card
    assert main(["import", str(file), *words]) == 2
    assert "another folder with out (command line: --out)" in capsys.readouterr().err
    assert load_file(run / "edit.safetensors").keys() == {f"unet.{name}" for name in kv()}
