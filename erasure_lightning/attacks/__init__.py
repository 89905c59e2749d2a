"""Every attack: one file each, and one line each in `ATTACKS`, which imports none of them."""

from erasure_lightning.discovery import BuiltIn

ATTACKS = {
    "UnlearnDiffAtk": BuiltIn(
        "erasure_lightning.attacks.unlearn_diff_atk:UnlearnDiffAtk",
        "Puts words in front of the prompt by which the edited model denoises the concept best",
        "Zhang et al. 2024, https://arxiv.org/abs/2310.11868",
    ),
    "P4D": BuiltIn(
        "erasure_lightning.attacks.p4d:P4D",
        "Looks for words by which the edited model predicts what the original predicts for the"
        " prompt",
        "Chin et al. 2024, https://arxiv.org/abs/2309.06135",
    ),
    "RingABell": BuiltIn(
        "erasure_lightning.attacks.ring_a_bell:RingABell",
        "Looks, in the text encoder alone, for words that mean the prompt and more of the concept",
        "Tsai et al. 2024, https://arxiv.org/abs/2310.10012",
    ),
    "ConceptInversion": BuiltIn(
        "erasure_lightning.attacks.concept_inversion:ConceptInversion",
        "Learns the embedding of a made-up word that calls the concept in the edited model",
        "Pham et al. 2024, https://arxiv.org/abs/2308.01508",
    ),
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
