"""Forecasts of the memory and work that a fit needs."""
