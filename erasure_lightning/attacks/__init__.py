"""Every attack: one file each, one line each in `ATTACKS`, which can be read without importing any of them."""

from erasure_lightning.methods import BuiltIn

ATTACKS: dict[str, BuiltIn] = {}
