"""Benchmarks: methods, concepts, seeds and attacks crossed, measured, and summarised."""
