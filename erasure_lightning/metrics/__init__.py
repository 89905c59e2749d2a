"""Metrics of generated images, their intervals, and the protocols they are measured under."""
