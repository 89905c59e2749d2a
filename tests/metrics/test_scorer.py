import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_scorers import save_scorer
from torch.nn.functional import interpolate
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.features import FeatureExtractor
from erasure_lightning.metrics.scorer import Preprocessing, Scorer


@pytest.mark.parametrize("kind", ["clip", "siglip", "dual"])
def test_embeds_pictures_and_texts_into_one_space(tmp_path, kind):
    scorer = Scorer.load(save_scorer(tmp_path, kind))
    images, texts = (
        scorer.images(torch.rand(2, 3, 32, 24)),
        scorer.texts(["a cat", "a dog", "the small bird"]),
    )
    assert images.shape[1] == texts.shape[1]
    torch.testing.assert_close(images.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_text_scores_the_same_in_any_company(tmp_path, kind):
    scorer = Scorer.load(save_scorer(tmp_path, kind))
    alone, beside = scorer.texts(["a cat"]), scorer.texts(["a cat", "a small bird in a house"])[:1]
    torch.testing.assert_close(alone, beside)
    torch.testing.assert_close(
        scorer.texts(["a cat", "a dog", "fish"], batch_size=2),
        scorer.texts(["a cat", "a dog", "fish"]),
    )


def test_siglip_reads_texts_padded_to_its_full_length(tmp_path):
    scorer = Scorer.load(save_scorer(tmp_path, "siglip"))
    tokens = scorer.tokenizer(["a cat"], padding="max_length", max_length=16, return_tensors="pt")
    expected = scorer.model.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(scorer.texts(["a cat"]), expected / expected.norm())


def test_gradients_reach_the_picture(tmp_path):
    picture = torch.rand(1, 3, 24, 24, requires_grad=True)
    Scorer.load(save_scorer(tmp_path)).images(picture)[0, 0].backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0


def test_fingerprint_is_of_the_weights(tmp_path):
    one, other = (save_scorer(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert (
        Scorer.load(one).fingerprint()
        == Scorer.load(one).fingerprint()
        != Scorer.load(other).fingerprint()
    )


def test_preprocessing_resizes_as_pillow_does():
    pixels = torch.randint(256, (40, 30, 3), dtype=torch.uint8)
    settings = {"size": {"shortest_edge": 15}, "do_normalize": False}
    ours = Preprocessing.read(settings)(pixels.permute(2, 0, 1)[None] / 255)
    theirs = Image.fromarray(pixels.numpy()).resize((15, 20), Image.Resampling.BICUBIC)
    theirs = (
        torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.uint8)
        .view(20, 15, 3)
        .permute(2, 0, 1)
        / 255
    )
    assert (ours[0] - theirs).abs().max() < 2 / 255


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"size": 16, "crop_size": 12, "do_center_crop": True}, (12, 12)),
        ({"size": {"height": 10, "width": 14}}, (10, 14)),
        ({"size": {"shortest_edge": 12}}, (24, 12)),
        ({"size": 9, "do_resize": False}, (48, 24)),
    ],
)
def test_sizes_may_be_written_in_any_of_transformers_ways(settings, shape):
    preprocessing = Preprocessing.read(settings | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    pictures = preprocessing(torch.ones(1, 3, 48, 24))
    assert pictures.shape[-2:] == shape
    torch.testing.assert_close(pictures, torch.ones_like(pictures))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (BitImageProcessorPil, {"size": {"shortest_edge": 20}, "crop_size": 16}),
        (CLIPImageProcessorPil, {"size": 20, "crop_size": 16}),
        (ViTImageProcessorPil, {"size": 20}),
        (ConvNextImageProcessorPil, {"size": 14}),
        (ConvNextImageProcessorPil, {"size": {"shortest_edge": 14}, "crop_pct": 0.6}),
        (ConvNextImageProcessorPil, {"size": 384}),
    ],
)
def test_networks_see_images_as_their_own_processors_prepare_them(kind, settings):
    """Up to Pillow's rounding; what is in the file says which filter and which crop."""
    pixels = torch.randint(256, (40, 30, 3), dtype=torch.uint8).float()
    pixels = interpolate(pixels.permute(2, 0, 1)[None], scale_factor=2, mode="bilinear")[0].byte()
    own = kind(**settings)
    theirs = own(pixels.permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"]
    ours = Preprocessing.read(own.to_dict())(pixels[None] / 255)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 2 / 255 / min(own.image_std)
    if isinstance(settings["size"], int):  # as older files have it
        assert torch.equal(Preprocessing.read(own.to_dict() | settings)(pixels[None] / 255), ours)


def test_another_filter_is_refused(tmp_path):
    """Torch would resize otherwise than the network was trained."""
    settings = json.loads((save_scorer(tmp_path) / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"resample": 0}))
    for kind in (Scorer, FeatureExtractor):
        with pytest.raises(ErasureError, match="resized with Pillow's filter 0; known are 2"):
            kind.load(tmp_path)


def test_missing_folder_is_refused():
    with pytest.raises(
        ErasureError, match=r"scorer './nowhere' was not found: it is no folder and no Hub id"
    ):
        Scorer.load("./nowhere")


def test_pickles_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        ErasureError,
        match=r"needs weights as safetensors; found pytorch_model\.bin\. Pickles can run code",
    ):
        Scorer.load(tmp_path)


def test_a_model_that_cannot_score_is_refused(tmp_path):
    save_scorer(tmp_path)
    CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(
        ErasureError,
        match=r"needs get_image_features and get_text_features .* found CLIPTextModel without",
    ):
        Scorer.load(tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "count"), [("num_hidden_layers", 2, 16), ("intermediate_size", 24, 3)]
)
def test_weights_that_are_not_those_of_the_config_are_refused(tmp_path, setting, value, count):
    config = json.loads((save_scorer(tmp_path) / "config.json").read_text())
    config["text_config"][setting] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = (
        f"could not be loaded: {count} of its weights are missing or of another shape .* the first"
        " text_model"
    )
    for kind in (Scorer, FeatureExtractor):
        with pytest.raises(ErasureError, match=message):
            kind.load(tmp_path)


def test_a_tower_that_is_named_and_not_there_is_refused(tmp_path):
    """A world's scorer lists in its index what it shares with the pipeline."""
    whole = load_file(save_scorer(tmp_path / "scorer") / "model.safetensors")
    (tmp_path / "scorer/model.safetensors").rename(tmp_path / "tower.safetensors")
    own = {key: value for key, value in whole.items() if not key.startswith("text_model.")}
    save_file(own, tmp_path / "scorer/own.safetensors", {"format": "pt"})
    where = {key: "own.safetensors" if key in own else "../tower.safetensors" for key in whole}
    (tmp_path / "scorer/model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )
    values = Scorer.load(tmp_path / "scorer").model.state_dict()
    assert all(torch.equal(values[key], whole[key]) for key in whole)
    (tmp_path / "tower.safetensors").unlink()
    with pytest.raises(
        ErasureError, match=r"could not be loaded: No such file .*tower\.safetensors"
    ):
        Scorer.load(tmp_path / "scorer")


def test_a_cut_file_is_refused(tmp_path):
    file = save_scorer(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for kind in (Scorer, FeatureExtractor):
        with pytest.raises(
            ErasureError, match="could not be loaded: Error while deserializing header"
        ):
            kind.load(tmp_path)


def test_a_folder_without_settings_is_refused(tmp_path):
    (save_scorer(tmp_path) / "preprocessor_config.json").unlink()
    with pytest.raises(ErasureError, match="could not be loaded: Can't load image processor"):
        Scorer.load(tmp_path)
