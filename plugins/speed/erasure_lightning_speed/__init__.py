"""SPEED, null-space constrained erasure, for erasure_lightning."""
