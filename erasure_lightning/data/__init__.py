"""Prompts to train on, images to generate, image files and grids."""
