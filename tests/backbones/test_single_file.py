"""Checkpoints in one file: equal to stock, and every mistake in one line."""

import json
import shutil

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from original_layouts import (
    narrow_flux_readers,
    original_tensors,
    second_generation,
    write_original,
)
from safetensors.torch import load_file

from erasure_lightning.backbones.clip_tower import ClipTower
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinySD3, TinyXL
from erasure_lightning.backbones.tiny_parts import tiny_clip_tokenizer, tiny_text_encoder
from erasure_lightning.errors import ErasureError


def third_generation():
    """Towers of two widths, the first without a projection of its own, as in the published one."""
    model = TinySD3()
    kind = "CLIPTextModelWithProjection"
    towers = []
    for width, projection in ((8, 8), (12, 24)):
        tokenizer = tiny_clip_tokenizer()
        clip = tiny_text_encoder(tokenizer, kind, layers=3, width=width, projection=projection)
        if width == projection:
            clip.text_projection.weight.data = torch.eye(width)
        towers.append(ClipTower(clip, tokenizer, layer=-2, pooled="projected"))
    model.text_encoders[0], model.text_encoders[1] = towers
    return model


@pytest.fixture
def narrow_flux(monkeypatch):
    flux = SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    monkeypatch.setitem(flux, "checkpoint_mapping_fn", narrow_flux_readers(32)[0])


CASES = {
    "sd1": (TinyBackbone, original_tensors),
    "sd2": (lambda: TinyBackbone(prediction="velocity"), second_generation),
    "xl": (TinyXL, original_tensors),
    "sd3": (third_generation, original_tensors),
    "flux": (TinyFlux, original_tensors),
}


def saved(model, layout, tmp_path):
    """A folder of another model's weights, and a checkpoint of the model."""
    pipeline = model.to_pipeline()
    pipeline.save_pretrained(tmp_path / "folder")
    return write_original(layout(pipeline), tmp_path / "model.safetensors"), tmp_path / "folder"


def without_weights(folder, *present):
    for file in folder.rglob("*.safetensors"):
        if file.parent.name not in present:
            file.unlink()


@pytest.mark.parametrize(("build", "layout"), CASES.values(), ids=CASES)
def test_latents_equal_stock(build, layout, tmp_path, narrow_flux):
    file, folder = saved(build(), layout, tmp_path)
    is_flux = layout is original_tensors and build is TinyFlux
    parts = ("vae", "text_encoder", "text_encoder_2") if is_flux else ()
    without_weights(folder, *parts)
    ours = load_backbone(f"{file}@{folder}")
    cls = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    components = {}
    if is_flux:
        components["vae"] = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
        components["text_encoder"] = ours.towers[0].model
        components["text_encoder_2"] = ours.towers[1].model
    stock = cls.from_single_file(str(file), config=str(folder), **components)
    again = type(ours).from_pipeline("stock", stock)
    state, expected = ours.state_dict(), again.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    stock.set_progress_bar_config(disable=True)
    options = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent"}
    ours_drawn, stock_drawn = (
        pipeline("a cat", **options, generator=torch.Generator().manual_seed(0)).images
        for pipeline in (ours.to_pipeline(), stock)
    )
    assert torch.equal(ours_drawn, stock_drawn)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return saved(TinyBackbone(), original_tensors, tmp_path_factory.mktemp("written"))


@pytest.fixture
def file(written, tmp_path):
    return shutil.copy(written[0], tmp_path / "own.safetensors")


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written[1], tmp_path / "configs")


def change(file, edit):
    write_original(edit(load_file(file)), file)


class TestConfigs:
    @pytest.mark.parametrize("place", [".", "own"])
    def test_beside_the_file(self, file, folder, place):
        for entry in sorted(folder.iterdir()):
            target = file.parent / place
            target.mkdir(exist_ok=True)
            entry.rename(target / entry.name)
        assert load_backbone(str(file)).fingerprint() == TinyBackbone().fingerprint()

    def test_of_the_repository_in_the_cache(self, file, folder, monkeypatch):
        cache = file.parent / "hub"
        home = cache / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("0" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        (home / "snapshots").mkdir()
        folder.rename(home / "snapshots" / ("0" * 40))
        monkeypatch.setattr(
            "huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("used the network")
        )
        assert load_backbone(str(file)).fingerprint() == TinyBackbone().fingerprint()

    def test_missing(self, file, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(file.parent / "empty"))
        with pytest.raises(
            ErasureError,
            match=r"those of Stable Diffusion 1.x, .*own.safetensors@FOLDER, .*"
            r"own.safetensors@stable-diffusion-v1-5/stable-diffusion-v1-5, from which",
        ):
            load_backbone(str(file))

    def test_the_folders_weights_are_not_used(self, file, folder):
        TinyBackbone(seed=1).save(folder)
        loaded = load_backbone(f"{file}@{folder}")
        assert loaded.fingerprint() == TinyBackbone().fingerprint()

    def test_shapes_alone(self, file, folder):
        loaded = load_backbone(f"{file}@{folder}", weights="none")
        assert loaded.latent_shape() == (4, 8, 8)


def spoilt(name):
    def edit(tensors):
        (key,) = [key for key in tensors if key.endswith(name)]
        tensors[key].view(-1)[0] = torch.nan
        return tensors

    return edit


def renamed(name, other):
    return lambda tensors: {n.replace(name, other): value for n, value in tensors.items()}


def without(start):
    return lambda tensors: {n: value for n, value in tensors.items() if not n.startswith(start)}


def reshaped(tensors):
    tensors["model.diffusion_model.out.2.bias"] = torch.zeros(3)
    return tensors


REFUSED = {
    "missing": (
        without("model.diffusion_model.middle_block.1.norm."),
        r"unet of .* found 2 missing \(mid_block.attentions.0.norm.bias, ...\)",
    ),
    "unexpected": (
        lambda tensors: tensors | {"model.diffusion_model.label_emb.0.0.bias": torch.zeros(1)},
        r"unet of .* found 1 unexpected \(model.diffusion_model.label_emb.0.0.bias\)",
    ),
    "of another shape": (reshaped, r"conv_out.bias: \[3\] stored, \[4\] by the config"),
    "not a number": (spoilt("out.2.bias"), "unet of .* needs finite weights; found NaN"),
    "a text encoder's": (
        without("cond_stage_model.transformer.text_model.encoder.layers.1"),
        "text_encoder of .* found 16 missing",
    ),
    "another model": (renamed("model.diffusion_model.", "net."), "unet of .* is not in own"),
}


@pytest.mark.parametrize(("edit", "message"), REFUSED.values(), ids=REFUSED)
def test_errors_are_one_line(file, folder, edit, message):
    without_weights(folder)
    change(file, edit)
    with pytest.raises(ErasureError, match=message) as caught:
        load_backbone(f"{file}@{folder}")
    assert "\n" not in str(caught.value)


class TestMarks:
    """Of a model that predicts the velocity, from noise alone on."""

    @pytest.fixture
    def scheduler(self, file, folder):
        change(file, lambda tensors: tensors | dict.fromkeys(("v_pred", "ztsnr"), torch.empty(0)))
        return folder / "scheduler" / "scheduler_config.json"

    @pytest.mark.parametrize(
        ("setting", "value"),
        [("prediction_type", "epsilon"), ("rescale_betas_zero_snr", False)],
    )
    def test_another_scheduler(self, file, folder, scheduler, setting, value):
        settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
        config = json.loads(scheduler.read_text()) | settings
        scheduler.write_text(json.dumps(config | {setting: value}))
        with pytest.raises(
            ErasureError, match=f"needs {setting} {settings[setting]}, .*; found {value}. Set it"
        ):
            load_backbone(f"{file}@{folder}")
        scheduler.write_text(json.dumps(config))
        assert load_backbone(f"{file}@{folder}").process.prediction == "velocity"


def test_what_no_converter_knows(file):
    change(file, renamed("model.diffusion_model.", "unet."))
    with pytest.raises(ErasureError, match="a denoiser in its authors' layout .*--model.loras"):
        load_backbone(str(file))


def test_a_cut_file(file, folder):
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ErasureError, match="needs to be a whole safetensors file"):
        load_backbone(f"{file}@{folder}")


def test_no_such_file(folder):
    with pytest.raises(ErasureError, match="there is no file nowhere.safetensors"):
        load_backbone(f"nowhere.safetensors@{folder}")


@pytest.mark.parametrize(
    ("ending", "kind"),
    [("ckpt", "a pickle"), ("bin", "a pickle"), ("pt", "a pickle"), ("gguf", "quantized")],
)
def test_other_formats(file, ending, kind):
    other = file.rename(file.with_suffix(f".{ending}"))
    for name in (str(other), f"{other}@./folder"):
        with pytest.raises(ErasureError, match=f"found {kind}.*Convert it once .*save_pretrained"):
            load_backbone(name)
