"""Every attack: one file each, one line each in `ATTACKS`, which can be read without importing any of them."""

from erasure_lightning.methods import BuiltIn

ATTACKS = {
    "BenignFineTune": BuiltIn(
        "erasure_lightning.attacks.benign_fine_tune:BenignFineTune",
        "Trains on harmless pictures and watches whether the concept comes back",
        "after Alam et al. 2025, https://arxiv.org/abs/2511.19558",
    ),
    "LatentInversion": BuiltIn(
        "erasure_lightning.attacks.latent_inversion:LatentInversion",
        "Looks for the noise of the concept's pictures, without words",
        "after Xiang et al. 2026, https://arxiv.org/abs/2603.17828",
    ),
    "RelearningCurve": BuiltIn(
        "erasure_lightning.attacks.relearning_curve:RelearningCurve",
        "Fine-tunes on a few pictures of the concept and tells how many bring it back",
        "after Liu and Zhang 2025, https://arxiv.org/abs/2505.16174",
    ),
    "SoftEmbedding": BuiltIn(
        "erasure_lightning.attacks.soft_embedding:SoftEmbedding",
        "Optimises what the denoiser reads, past any text encoder",
        "after Huang et al. 2024, https://arxiv.org/abs/2311.17717",
    ),
}
