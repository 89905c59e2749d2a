"""A batch of requests is drawn with its own prompts, seeds and settings."""

import torch

from erasure_lightning.data.image_plan import ImageBatch, ImageRequest
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.training.batch_sampling import sample_batch


def test_images_are_those_of_the_requests(tiny):
    requests = [
        ImageRequest(prompt, seed, "efficacy", "", "", steps=3, guidance=2.0)
        for prompt, seed in (("a cat", 5), ("a dog", 9))
    ]
    images = sample_batch(tiny, ImageBatch(requests, (24, 16)))
    by_hand = sample_images(tiny, ["a cat", "a dog"], [5, 9], steps=3, guidance=2.0, size=(24, 16))
    assert images.shape == (2, 3, 24, 16)
    assert torch.equal(images, by_hand)
