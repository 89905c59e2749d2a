"""Noisy latents that a test chooses, as a latent source returns them."""

from erasure_lightning.training.latent_sources import NoisyBatch, Teacher


def noisy(module, x, t, sentences, **fields):
    """A batch with the module's frozen original as teacher; ``fields`` are further ones of it."""
    return NoisyBatch(x, t, sentences, Teacher(module.original, x, t, sentences), **fields)
