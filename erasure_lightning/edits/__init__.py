"""Edits: their file, what they fit, how they are applied."""
