"""Every method: one file each, one line each in `METHODS`, which can be read without importing any of them."""

from typing import NamedTuple


class BuiltIn(NamedTuple):
    """What a listing says of a method.

    Args:
        target: Where its class is, ``module:Class``.
        summary: What it does, in one line.
        paper: Where it was published.
    """

    target: str
    summary: str
    paper: str


METHODS = {
    "SAGE": BuiltIn(
        "erasure_lightning.methods.sage:SAGE",
        "Erases from the text encoder, and keeps meaning and denoising where they were",
        "Zhu et al. 2025, https://arxiv.org/abs/2506.09363",
    ),
}
