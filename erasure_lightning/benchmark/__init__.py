"""Benchmarks: methods x concepts x seeds x attacks, cell by cell, and what follows from the table."""
