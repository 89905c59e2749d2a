"""Sampling, inversion, noised latents of generated images, and fine-tuning."""
