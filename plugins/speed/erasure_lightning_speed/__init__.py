"""SPEED, erasure in the null space of what is retained: a method of erasure_lightning in a package
of its own.
"""
