"""How much of the contract of every method is checked of a method's variants."""

from erasure_lightning.backbones.tiny import TINY_BACKBONES

#: Arguments of `check_method`: the rest of it, and the other families, are the default's to check.
VARIANT = {"thorough": False, "families": TINY_BACKBONES[:1]}
