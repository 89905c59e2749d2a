import pytest
import torch
from tiny_scorers import SETTINGS, save_scorer
from transformers import CLIPTextConfig, CLIPTextModel, ResNetConfig, ResNetModel

from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.features import FeatureExtractor
from erasure_lightning.metrics.scorer import Scorer


@pytest.mark.parametrize("kind", ["clip", "siglip", "dual"])
def test_a_scorer_s_image_encoder_is_a_network(tmp_path, kind):
    images = torch.rand(3, 3, 32, 24)
    features = FeatureExtractor.load(save_scorer(tmp_path, kind))(images)
    expected = Scorer.load(tmp_path).images(images)
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=1), expected)


def test_a_vision_model_alone_is_one(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(SETTINGS)
    network = FeatureExtractor.load(tmp_path)
    assert network(torch.rand(2, 3, 20, 20)).shape == (2, 16)
    assert network.fingerprint() == FeatureExtractor.load(tmp_path).fingerprint()


def test_a_text_model_is_refused(tmp_path):
    config = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    CLIPTextModel(config).save_pretrained(tmp_path)
    with pytest.raises(ErasureError, match=r"The network .* could not be loaded: "):
        FeatureExtractor.load(tmp_path)
