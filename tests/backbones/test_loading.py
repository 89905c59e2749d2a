"""What people bring: folders of 2022, variants, and folders in which something is wrong."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection

from erasure_lightning.__main__ import main
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.diffusion.sampling import sample_latents
from erasure_lightning.errors import ErasureError
from erasure_lightning.planning.memory_tracker import shapes

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    TinyBackbone().save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "pipeline")


@pytest.fixture(scope="module")
def known():
    return TinyBackbone().fingerprint()


def bend(path, **values):
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def sampler(folder, cls, **values):
    config = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(
        json.dumps({"_class_name": cls, "_diffusers_version": "0.6.0"} | config | values)
    )
    bend(folder / "model_index.json", scheduler=["diffusers", cls])


def rewrite(path, change):
    """Store what a function makes of the tensors, by name."""
    save_file({name: tensor.clone() for name, tensor in change(load_file(path)).items()}, path)


def stock(folder, **options):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class TestConfigsOf2022:
    """Stock repairs them as it loads, and so do we."""

    @pytest.mark.parametrize(
        "old",
        [
            lambda f: None,
            lambda f: sampler(f, "DDIMScheduler"),
            lambda f: sampler(f, "PNDMScheduler", skip_prk_steps=True),
            lambda f: sampler(f, "DDIMScheduler", clip_sample=True, steps_offset=0),
            lambda f: bend(f / "unet" / "config.json", sample_size=4, _diffusers_version="0.6.0"),
        ],
        ids=["new", "ddim", "pndm", "ddim that clips", "sample size"],
    )
    def test_latents_equal_stock(self, folder, old):
        old(folder)
        ours = load_backbone(str(folder))
        theirs = stock(folder)
        assert ours.latent_shape()[1] == theirs.unet.config.sample_size
        x = ours.noise([3], size=16)
        ours.denoiser = theirs.unet
        ours.text_encoders[0].model = theirs.text_encoder  # the same memory rounds alike
        drawn = theirs(
            "a cat",
            height=16,
            width=16,
            num_inference_steps=3,
            guidance_scale=4.0,
            latents=x,
            output_type="latent",
        ).images
        assert torch.equal(
            sample_latents(ours, ["a cat"], [3], steps=3, guidance=4.0, size=16), drawn
        )

    def test_a_new_config_keeps_its_small_size(self, folder):
        bend(folder / "unet" / "config.json", sample_size=4)
        assert load_backbone(str(folder)).latent_shape() == (4, 4, 4)

    @pytest.mark.parametrize("weights", ["text encoders", "none"])
    def test_models_without_weights_are_repaired_too(self, folder, weights):
        bend(folder / "unet" / "config.json", sample_size=4, _diffusers_version="0.6.0")
        assert load_backbone(str(folder), weights=weights).latent_shape() == (4, 64, 64)

    def test_remarks_on_what_is_repaired_stay_off_the_terminal(self, folder, recwarn, capsys):
        sampler(folder, "DDIMScheduler")
        load_backbone(str(folder))
        assert not [
            w for w in recwarn if "outdated" in str(w.message) or "clip_sample" in str(w.message)
        ]
        assert "outdated" not in capsys.readouterr().err


class TestModes:
    def test_the_denoiser_has_no_values_where_another_rank_gives_them(self, folder):
        loaded = load_backbone(str(folder), torch.bfloat16, "text encoders")
        assert {p.device.type for p in loaded.denoiser.parameters()} == {"meta"}
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        assert {
            p.device.type for p in [*loaded.text_encoders.parameters(), *loaded.vae.parameters()]
        } == {"cpu"}
        assert not loaded.denoiser.training

    def test_shapes_alone_are_compared_where_tensors_have_no_values(self, folder):
        with shapes():
            loaded = load_backbone(str(folder), weights="none")
        assert {n: p.shape for n, p in loaded.named_parameters()} == {
            n: p.shape for n, p in load_backbone(str(folder)).named_parameters()
        }
        bend(folder / "text_encoder" / "config.json", num_hidden_layers=3)
        with shapes(), pytest.raises(ErasureError, match="found 16 missing"):
            load_backbone(str(folder), weights="none")

    @pytest.mark.parametrize("written", ["float16", "bfloat16", "float64"])
    def test_a_precision_in_a_config_changes_nothing(self, folder, written, known):
        bend(folder / "text_encoder" / "config.json", dtype=written, torch_dtype=written)
        assert load_backbone(str(folder)).fingerprint() == known
        assert {p.dtype for p in load_backbone(str(folder), weights="none").parameters()} == {
            torch.float32
        }


class TestNames:
    @pytest.mark.parametrize("end", ["", "/", "/model_index.json"])
    def test_a_folder_by_another_name(self, folder, end, known):
        assert load_backbone(f"{folder}{end}").fingerprint() == known

    def test_home(self, folder, monkeypatch, known):
        monkeypatch.setenv("HOME", str(folder.parent))
        assert load_backbone("~/pipeline").fingerprint() == known

    @pytest.mark.parametrize(
        "name",
        ["", "models/sd.safetensors", "~nobody/x", "a//b", "owner/", "../x/y", "models/my sdxl"],
    )
    def test_nothing_there(self, name):
        with pytest.raises(
            ErasureError, match="was not found: it is no installed world, no folder, and no Hub id"
        ):
            load_backbone(name)

    def test_a_file_of_another_kind(self, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(ErasureError, match="was not found: it is a file"):
            load_backbone(str(tmp_path / "notes.txt"))

    @pytest.mark.parametrize(
        ("name", "message"),
        [("notes.txt", "was not found: it is a file"), ("sd.ckpt", "found a pickle")],
    )
    def test_the_command_line_takes_a_text_file_for_a_file(self, tmp_path, capfd, name, message):
        """Not its content, which the parser would take for the name."""
        file = tmp_path / name
        file.write_text("version https://git-lfs.github.com/spec/v1")
        concepts = ["--model.concepts", "[{name: cat, anchor: dog}]"]
        assert main(["fit", "--model", "UCE", "--model.backbone", str(file), *concepts]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert str(file) in line
        assert message in line

    def test_the_folder_above_and_below(self, folder):
        for near in (folder.parent, folder / "unet"):
            with pytest.raises(ErasureError, match=f"found none; did you mean {folder}"):
                load_backbone(str(near))


class TestHub:
    @pytest.fixture
    def cached(self, folder, monkeypatch, tmp_path):
        """A repository in the cache, as a download leaves it, and no network."""
        home = tmp_path / "hub" / "models--owner--model"
        (home / "refs").mkdir(parents=True)
        commit = "0123456789abcdef0123456789abcdef01234567"
        (home / "refs" / "main").write_text(commit)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        (home / "snapshots").mkdir()
        return folder.rename(home / "snapshots" / commit)

    def test_a_repository_in_the_cache(self, cached, known):
        assert load_backbone("owner/model").fingerprint() == known

    def test_fp16_alone(self, cached):
        for file in (UNET, VAE, TEXT):
            (cached / file).rename((cached / file).with_suffix(".fp16.safetensors"))
        assert load_backbone("owner/model").fingerprint() == TinyBackbone().fingerprint()

    def test_weights_that_are_not_read_need_not_be_there(self, cached):
        (cached / UNET).unlink()
        assert load_backbone("owner/model", weights="text encoders").latent_shape() == (4, 8, 8)
        with pytest.raises(ErasureError, match="needs weights as safetensors; found none"):
            load_backbone("owner/model")

    def test_a_revision(self, cached, monkeypatch, tmp_path, known):
        """Another commit than the main branch's."""
        home = cached.parent.parent
        commit = "89abcdef0123456789abcdef0123456789abcdef"
        (home / "refs" / "v2").write_text(commit)
        TinyBackbone(seed=1).save(home / "snapshots" / commit)
        other = TinyBackbone(seed=1).fingerprint()
        assert load_backbone("owner/model").fingerprint() == known
        assert load_backbone("owner/model@v2").fingerprint() == other
        assert load_backbone(f"owner/model@{commit}").fingerprint() == other
        with pytest.raises(ErasureError, match="Hub id 'owner/model@v3' could not be read"):
            load_backbone("owner/model@v3")

    def test_one_out_of_reach(self, cached):
        with pytest.raises(ErasureError, match="The Hub id 'owner/other' could not be read: "):
            load_backbone("owner/other")

    def test_an_error_without_a_message(self, cached, monkeypatch):
        def fail(*_, **__):
            raise TimeoutError

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        with pytest.raises(ErasureError, match="'owner/other' could not be read: TimeoutError$"):
            load_backbone("owner/other")

    def test_an_error_of_the_network(self, cached, monkeypatch):
        def fail(*_, **__):
            raise OSError("Got: ConnectError: no such host")

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        with pytest.raises(ErasureError, match="read: ConnectError: no such host$"):
            load_backbone("owner/other")

    def test_only_what_is_read_is_fetched(self, cached, monkeypatch):
        fetched = []
        files = [
            f"{part}/diffusion_pytorch_model{end}.safetensors"
            for part in ("unet", "vae")
            for end in ("", ".fp16")
        ]
        files += [
            "unet/diffusion_pytorch_model.bin",
            "text_encoder/model.fp16.safetensors",
            "safety_checker/model.safetensors",
        ]
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: files)
        monkeypatch.setattr(
            "huggingface_hub.snapshot_download",
            lambda n, revision, allow_patterns: fetched.append(allow_patterns) or str(cached),
        )
        load_backbone("owner/model", weights="text encoders")
        index, rest = fetched
        assert index == ["model_index.json"]
        assert [p for p in rest if "*" not in p] == [VAE, "text_encoder/model.fp16.safetensors"]
        assert not any(pattern.startswith("safety_checker") for pattern in rest)


def fp16(folder):
    pipeline = stock(folder, dtype=torch.float16)
    shutil.rmtree(folder)
    return pipeline, {"save_directory": folder, "variant": "fp16"}


class TestVariants:
    @pytest.mark.parametrize("shards", [{}, {"max_shard_size": "60KB"}], ids=["whole", "shards"])
    def test_a_folder_of_fp16_alone(self, folder, shards, known):
        pipeline, options = fp16(folder)
        pipeline.save_pretrained(**options, **shards)
        files = [p.name for p in (folder / "unet").iterdir()]
        assert all("fp16" in name for name in files if name != "config.json")
        assert (len(files) > 3) == bool(shards)
        loaded = load_backbone(str(folder))
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        half = TinyBackbone().to(torch.float16).to(torch.float32)
        assert loaded.fingerprint() == half.fingerprint() != known

    def test_full_precision_comes_first(self, folder, known):
        for file in (UNET, VAE, TEXT):
            zeros = {
                name: torch.zeros_like(tensor) for name, tensor in load_file(folder / file).items()
            }
            save_file(zeros, (folder / file).with_suffix(".fp16.safetensors"))
        assert load_backbone(str(folder)).fingerprint() == known

    def test_each_component_has_its_own(self, folder, known):
        (folder / VAE).rename(folder / "vae/diffusion_pytorch_model.fp16.safetensors")
        assert load_backbone(str(folder)).fingerprint() == known

    def test_other_weights_are_not_taken_for_them(self, folder):
        (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.non_ema.safetensors")
        with pytest.raises(
            ErasureError,
            match=r"non_ema.safetensors. Rename .* to diffusion_pytorch_model.safetensors",
        ):
            load_backbone(str(folder))


def old_names(folder):
    """Text encoder and autoencoder as they were stored in 2022."""
    rewrite(
        folder / TEXT,
        lambda tensors: (
            {f"text_model.{name}": tensor for name, tensor in tensors.items()}
            | {"text_model.embeddings.position_ids": torch.arange(16).unsqueeze(0)}
        ),
    )
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name):
        for new, old in names.items():
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{old}")
        return name

    rewrite(
        folder / VAE, lambda tensors: {renamed(name): tensor for name, tensor in tensors.items()}
    )
    assert any("query" in name for name in load_file(folder / VAE))


def whole_clip(folder):
    config = folder / "text_encoder" / "config.json"
    text = json.loads(config.read_text())
    config.write_text(
        json.dumps(
            {"model_type": "clip", "projection_dim": 32, "text_config": text, "vision_config": {}}
        )
    )
    rest = {
        "vision_model.x": torch.zeros(2),
        "logit_scale": torch.zeros(()),
        "text_projection.weight": torch.zeros(2),
    }
    rewrite(
        folder / TEXT, lambda tensors: {f"text_model.{n}": t for n, t in tensors.items()} | rest
    )


def sharded(folder):
    pipeline = stock(folder)
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder, max_shard_size="60KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2


def long_table(folder):
    rewrite(
        folder / TEXT,
        lambda tensors: {
            n: torch.cat([t, t[:3]]) if "token_embedding" in n else t for n, t in tensors.items()
        },
    )
    config = folder / "text_encoder" / "config.json"
    bend(config, vocab_size=json.loads(config.read_text())["vocab_size"] + 3)


def slow_tokenizer(folder):
    tokenizer = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    (folder / "tokenizer/vocab.json").write_text(json.dumps(tokenizer["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["merges"]]
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer/tokenizer.json").unlink()


def byte_order_mark(folder):
    index = folder / "model_index.json"
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())


def other_parts(folder):
    bend(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        requires_safety_checker=True,
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=[None, None],
        x=[None, None],
    )
    for name in ("safety_checker", "feature_extractor", ".cache"):
        (folder / name).mkdir()
        (folder / name / "pytorch_model.bin").write_bytes(b"not read")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle beside the safetensors")


class TestAccepted:
    @pytest.mark.parametrize(
        "change",
        [old_names, whole_clip, sharded, slow_tokenizer, byte_order_mark, other_parts],
        ids=lambda f: f.__name__,
    )
    def test_the_same_model_in_another_layout(self, folder, change, known):
        change(folder)
        loaded = load_backbone(str(folder))
        assert loaded.fingerprint() == known
        tokens = loaded.towers[0].tokenizer("a photo of a cat").input_ids
        assert tokens == TinyBackbone().towers[0].tokenizer("a photo of a cat").input_ids

    def test_a_table_longer_than_the_vocabulary(self, folder):
        long_table(folder)
        assert (
            len(load_backbone(str(folder)).word_tables()[0])
            == len(TinyBackbone().word_tables()[0]) + 3
        )


def lora_inside(folder):
    pipeline = stock(folder)
    pipeline.unet.add_adapter(LoraConfig(r=4, target_modules=["to_k", "to_q"]))
    pipeline.save_pretrained(folder)


def taesd(folder):
    shutil.rmtree(folder / "vae")
    small = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
        "upsampling_scaling_factor": 2,
    }
    AutoencoderTiny(**small, **blocks).save_pretrained(folder / "vae")
    bend(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])


def with_projection(folder):
    config = TinyBackbone().towers[0].model.config
    CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder")
    bend(folder / "model_index.json", text_encoder=["transformers", "CLIPTextModelWithProjection"])


def swapped(folder):
    (folder / "unet").rename(folder / "x")
    (folder / "text_encoder").rename(folder / "unet")
    (folder / "x").rename(folder / "text_encoder")


def cut(folder):
    (folder / VAE).write_bytes((folder / VAE).read_bytes()[:-100])


def pointer(folder):
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def missing_shard(folder):
    sharded(folder)
    sorted((folder / "unet").glob("*.safetensors"))[1].unlink()


def shards_without_index(folder):
    sharded(folder)
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").unlink()


def index_is_a_folder(folder):
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").mkdir()


def not_a_number(folder):
    def spoilt(tensors):
        tensors["conv_in.bias"][0] = torch.nan
        return tensors

    rewrite(folder / UNET, spoilt)


def more_tokens(folder):
    tokenizer = TinyBackbone().towers[0].tokenizer
    tokenizer.add_tokens(["<sks>"])
    tokenizer.save_pretrained(folder / "tokenizer")


def config(component, **values):
    return lambda folder: bend(folder / component / "config.json", **values)


def entry(**values):
    return lambda folder: bend(folder / "model_index.json", **values)


def without(path):
    def change(folder):
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()

    return change


def text(path, content):
    return lambda folder: (folder / path).write_text(content)


def flow(folder):
    sampler(folder, "FlowMatchEulerDiscreteScheduler")


REFUSED = {
    "a layer too few": (
        config("text_encoder", num_hidden_layers=3),
        r"text_encoder .* found 16 missing \(encoder.l",
    ),
    "a layer too many": (
        config("text_encoder", num_hidden_layers=1),
        r"text_encoder of .* found 16 unexpected",
    ),
    "another width": (
        config("vae", block_out_channels=[8, 16]),
        r"vae of .* of another shape \(.*: \[\d.*\] stored, \[\d.*\] by the config",
    ),
    "a UNet block too many": (config("unet", layers_per_block=2), r"unet of .* found \d+ missing"),
    "LoRA inside": (
        lora_inside,
        r"LoRA layers inside: call fuse_lora\(\) and unload_lora_weights\(\)",
    ),
    "a tensor beside": (
        lambda folder: rewrite(
            folder / UNET, lambda tensors: tensors | {"add_embedding.x": torch.zeros(1)}
        ),
        r"found 1 unexpected \(add_embedding.x\)",
    ),
    "AutoencoderTiny": (
        taesd,
        "vae of .* needs the class diffusers.AutoencoderKL; found diffusers.AutoencoderTiny",
    ),
    "a projection": (
        with_projection,
        "needs the class transformers.CLIPTextModel; found .*WithProjection",
    ),
    "code in the folder": (
        entry(unet=["my_unet", "UNet"]),
        "needs the class diffusers.UNet2D.*; found my_unet.UNet",
    ),
    "no text encoder": (
        entry(text_encoder=[None, None]),
        "and a class for its text_encoder; found .None, None.",
    ),
    "no entry": (
        entry(scheduler=None),
        "needs a library and a class for its scheduler; found None",
    ),
    "another tokenizer": (
        entry(tokenizer=["transformers", "T5Tokenizer"]),
        "CLIPTokenizer; found transformers.T5Tok",
    ),
    "no scheduler folder": (without("scheduler"), "needs a folder .*scheduler; found none"),
    "no scheduler config": (
        without("scheduler/scheduler_config.json"),
        "scheduler of .* found none",
    ),
    "no sampler": (
        entry(scheduler=["diffusers", "UNet2DModel"]),
        "scheduler of .* found diffusers.UNet2DModel",
    ),
    "an unknown sampler": (
        entry(scheduler=["diffusers", "Magic"]),
        "of the installed diffusers; found diffusers.Mag",
    ),
    "flow matching": (
        flow,
        r"needs a noise schedule \(alphas_cumprod\); found FlowMatchEulerDiscreteScheduler",
    ),
    "a flow by setting": (
        lambda f: sampler(
            f, "UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True
        ),
        "predicts epsilon or v_prediction; found 'flow_prediction'",
    ),
    "a sampler that cannot be made": (
        lambda f: sampler(f, "DDIMScheduler", beta_schedule="x"),
        "scheduler of .* could not be loaded: NotImplemented",
    ),
    "no tokenizer": (
        without("tokenizer"),
        "tokenizer.json, or vocab.json and merges.txt, .* found no vocab.json",
    ),
    "half a tokenizer": (
        lambda f: (slow_tokenizer(f), without("tokenizer/merges.txt")(f)),
        "found no merges.txt",
    ),
    "a broken tokenizer": (
        text("tokenizer/tokenizer.json", "{"),
        "tokenizer of .* could not be loaded",
    ),
    "tokens without embeddings": (
        more_tokens,
        r"tokenizer of .* needs a text_encoder with \d+ embeddings; found \d+",
    ),
    "more positions": (
        lambda f: bend(f / "tokenizer/tokenizer_config.json", model_max_length=77),
        "at most 16, .* found 77",
    ),
    "padding before words": (
        lambda f: bend(f / "tokenizer/tokenizer_config.json", padding_side="left"),
        "tokenizer of .* needs padding_side right; found left",
    ),
    "no unet folder": (without("unet"), "needs a folder .*unet; found none"),
    "no config": (without("unet/config.json"), "unet of .* found none. Download it again"),
    "a broken config": (
        text("unet/config.json", "{'a': 1}"),
        "unet/config.json needs JSON in UTF-8; found an error",
    ),
    "a config that is a list": (
        text("vae/config.json", "[]"),
        "vae/config.json needs a JSON object; found list",
    ),
    "a config without sense": (
        config("unet", down_block_types=["x"]),
        "unet of .* could not be loaded: ValueError",
    ),
    "the config of another model": (
        lambda f: shutil.copy(f / "vae/config.json", f / "unet/config.json"),
        "unet/config.json needs to describe a UNet2DConditionModel; found AutoencoderKL",
    ),
    "another text model": (
        config("text_encoder", model_type="bert"),
        "a CLIPTextModel; found bert",
    ),
    "swapped folders": (swapped, "needs to describe a .*; found"),
    "quantized": (
        config("unet", quantization_config={"quant_method": "x"}),
        "needs plain weights; found quantized",
    ),
    "inpainting": (
        config("unet", in_channels=9),
        "in_channels as the vae has latent_channels; found 9 and 4",
    ),
    "unCLIP": (
        config("unet", class_embed_type="projection", projection_class_embeddings_input_dim=8),
        "found one with embeddings of classes or images",
    ),
    "another vae": (config("vae", latent_channels=16), "latent_channels; found 4 and 16"),
    "another text width": (
        config("unet", cross_attention_dim=64),
        "text states of width 64 .* text encoders of 32",
    ),
    "a broken index": (text("model_index.json", "{"), "model_index.json needs JSON in UTF-8"),
    "an empty index": (text("model_index.json", ""), "model_index.json needs JSON in UTF-8"),
    "no class in it": (entry(_class_name=None), "needs a known pipeline class; found None"),
    "a class that is code": (
        entry(_class_name=["my_pipeline", "X"]),
        r"class; found \['my_pipeline', 'X'\]",
    ),
    "an index that is a folder": (
        index_is_a_folder,
        "model_index.json cannot be read: Is a directory",
    ),
    "a pointer of LFS": (pointer, "unet.* found a pointer of Git LFS. Run `git lfs pull`"),
    "a cut file": (cut, "vae.*needs to be a whole safetensors file; found .* Download it again"),
    "an empty file": (text(TEXT, ""), "text_encoder.*needs to be a whole safetensors file"),
    "a missing shard": (missing_shard, "needs all shards of its weights; found no .*-00002-of-"),
    "no index of shards": (shards_without_index, "needs all shards .* without an index"),
    "a wrong name": (
        lambda f: (f / UNET).rename(f / "unet/model.safetensors"),
        "found model.safetensors. Rename what is to be read to diffusion_pytorch_model.safetensors",
    ),
    "pickles of the text encoder": (
        lambda f: (f / TEXT).rename(f / "text_encoder/pytorch_model.bin"),
        "found pytorch_model.bin. Pickles can run",
    ),
    "a vae without a scale": (
        config("vae", scaling_factor=0),
        "vae of .* needs scaling_factor above 0; found 0",
    ),
    "a vae's scale of NaN": (
        config("vae", scaling_factor=float("nan")),
        "vae of .* needs a finite scaling_factor; found nan",
    ),
    "not a number": (
        not_a_number,
        "unet of .* needs finite weights; found NaN or infinity in conv_in.bias",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_errors_are_one_line(folder, change, message):
    change(folder)
    with pytest.raises(ErasureError, match=message) as caught:
        load_backbone(str(folder))
    assert "\n" not in str(caught.value)


def test_all_is_looked_at_before_a_weight_is_read(folder, monkeypatch):
    pointer(folder)
    monkeypatch.setattr(
        "diffusers.AutoencoderKL.from_pretrained", lambda *_, **__: pytest.fail("was read")
    )
    with pytest.raises(ErasureError, match="pointer of Git LFS"):
        load_backbone(str(folder))


def test_the_command_line_ends_with_2_and_one_line(folder, capfd):
    flow(folder)
    message = ["--model.concepts", "[{name: cat, anchor: dog}]", "--measure", "false"]
    assert main(["fit", "--model", "UCE", "--model.backbone", str(folder), *message]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("erasure: error: The scheduler of ")


class TestWorlds:
    def test_every_component_is_read_where_the_world_says(
        self, folder, monkeypatch, tmp_path, known
    ):
        from erasure_lightning.concepts.worlds import World

        (tmp_path / "other").mkdir()
        parts = {
            f"pipeline/{name}": (folder / name).rename(tmp_path / "other" / name)
            for name in ("vae", "tokenizer")
        }
        world = World("w", tmp_path, "p", (), (), 1, 1.0, 16, {}, parts)
        monkeypatch.setattr(
            "erasure_lightning.backbones.sources.installed_world", lambda name: world
        )
        loaded = load_backbone("w")
        assert loaded.world is world
        assert loaded.fingerprint() == known
