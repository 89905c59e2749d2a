"""Collectives over ranks, and sharded modules."""
