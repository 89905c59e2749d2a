"""Scorers with random weights, and one with known verdicts."""

import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderModel,
)

from erasure_lightning.backbones.tiny import TinyBackbone

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}

#: Content of ``preprocessor_config.json``.
SETTINGS = """{"do_resize": true, "size": {"shortest_edge": 16}, "do_center_crop": true,
    "crop_size": {"height": 16, "width": 16}, "do_normalize": true, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4]}"""


def _text():
    tokenizer = TinyBackbone().towers[0].tokenizer
    return tokenizer, {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "projection_dim": 8,
    }


def save_scorer(folder, kind="clip", seed=0):
    """Writes a scorer in the format of transformers: ``clip``, ``siglip``, or ``dual`` towers."""
    torch.manual_seed(seed)
    tokenizer, text = _text()
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))
    elif kind == "siglip":
        text.pop("projection_dim")
        text["projection_size"] = 16
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    else:
        config = ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            hidden_size=16,
        )
        vision_model = ResNetModel(config)
        text_model = CLIPTextModelWithProjection(CLIPTextConfig(**text))
        model = VisionTextDualEncoderModel(vision_model=vision_model, text_model=text_model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(SETTINGS)
    return folder


class KnownScorer(nn.Module):
    """Embeds each text as a one-hot vector, and an image as its pixels.

    ``picture`` is the image ``(3, 16, 16)`` whose embedding is that of a text.
    """

    name = "known"

    def __init__(self):
        super().__init__()
        self.known = {}

    def texts(self, prompts):
        indices = [self.known.setdefault(prompt, len(self.known)) for prompt in prompts]
        return torch.eye(3 * 16 * 16)[indices]

    def images(self, images):
        return images.flatten(1)

    def fingerprint(self):
        return "known"

    def picture(self, text):
        return self.texts([text]).view(3, 16, 16)
