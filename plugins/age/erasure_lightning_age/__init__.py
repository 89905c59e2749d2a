"""Adaptive guided erasure for erasure_lightning."""
