"""Every attack: one file each, one line each in `ATTACKS`, which can be read without importing any of them."""

from erasure_lightning.methods import BuiltIn

ATTACKS = {
    "SoftEmbedding": BuiltIn(
        "erasure_lightning.attacks.soft_embedding:SoftEmbedding",
        "Optimises what the denoiser reads, past any text encoder",
        "after Huang et al. 2024, https://arxiv.org/abs/2311.17717",
    ),
}
