"""The seam to model families."""
