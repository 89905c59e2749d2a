"""Callbacks of a run: cost, validation, images, metrics, dashboards, interruption."""
