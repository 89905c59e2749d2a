"""Sampling, inversion, noised latents of generated images, fine-tuning."""
