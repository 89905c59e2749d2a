"""Noisy latents of a test's own choosing, as a source would give them."""

from erasure_lightning.training.latent_sources import NoisyBatch, Teacher


def noisy(module, x, t, sentences, **more):
    """Latents for sentences, with the module's frozen original as their teacher."""
    return NoisyBatch(x, t, sentences, Teacher(module.original, x, t, sentences), **more)
