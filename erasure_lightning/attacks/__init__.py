"""Every attack: one file each, and one line each in `ATTACKS`, which imports none of them."""

from typing import TYPE_CHECKING

from erasure_lightning.discovery import BuiltIn, load_built_in

if TYPE_CHECKING:
    from erasure_lightning.attacks.base import Attack


def __getattr__(name: str) -> type["Attack"]:
    """The class of an attack, imported when it is first used."""
    cls: type[Attack] = load_built_in(__name__, ATTACKS, name)
    return cls


def __dir__() -> list[str]:
    return sorted([*globals(), *ATTACKS])


ATTACKS = {
    "UnlearnDiffAtk": BuiltIn(
        "erasure_lightning.attacks.unlearn_diff_atk:UnlearnDiffAtk",
        "Optimises words in front of the prompt so that the edited model denoises the concept",
        "Zhang et al. 2024, https://arxiv.org/abs/2310.11868",
    ),
    "P4D": BuiltIn(
        "erasure_lightning.attacks.p4d:P4D",
        "Optimises words for which the edited model predicts what the original does for the prompt",
        "Chin et al. 2024, https://arxiv.org/abs/2309.06135",
    ),
    "RingABell": BuiltIn(
        "erasure_lightning.attacks.ring_a_bell:RingABell",
        "Searches, in the text encoder alone, for words whose states are the prompt's plus the"
        " concept vector",
        "Tsai et al. 2024, https://arxiv.org/abs/2310.10012",
    ),
    "ConceptInversion": BuiltIn(
        "erasure_lightning.attacks.concept_inversion:ConceptInversion",
        "Learns the embedding of a new word for the concept in the edited model",
        "Pham et al. 2024, https://arxiv.org/abs/2308.01508",
    ),
    "BenignFineTune": BuiltIn(
        "erasure_lightning.attacks.benign_fine_tune:BenignFineTune",
        "Fine-tunes on unrelated images and measures whether the concept returns",
        "after Alam et al. 2025, https://arxiv.org/abs/2511.19558",
    ),
    "LatentInversion": BuiltIn(
        "erasure_lightning.attacks.latent_inversion:LatentInversion",
        "Inverts images of the concept to noise and regenerates them without a prompt",
        "after Xiang et al. 2026, https://arxiv.org/abs/2603.17828",
    ),
    "RelearningCurve": BuiltIn(
        "erasure_lightning.attacks.relearning_curve:RelearningCurve",
        "Fine-tunes on a few images of the concept and reports how many bring it back",
        "after Liu and Zhang 2025, https://arxiv.org/abs/2505.16174",
    ),
    "SoftEmbedding": BuiltIn(
        "erasure_lightning.attacks.soft_embedding:SoftEmbedding",
        "Optimises the denoiser's conditioning directly, bypassing the text encoder",
        "after Huang et al. 2024, https://arxiv.org/abs/2311.17717",
    ),
    "Inpainting": BuiltIn(
        "erasure_lightning.attacks.inpainting:Inpainting",
        "Masks the middle of images of the concept and lets the edited model restore it",
        "Lu et al. 2025, https://arxiv.org/abs/2505.17013",
    ),
    "Completion": BuiltIn(
        "erasure_lightning.attacks.completion:Completion",
        "Lets the edited model finish images of the concept that the original has begun",
        "Lu et al. 2025, https://arxiv.org/abs/2505.17013",
    ),
    "TrajectoryNoise": BuiltIn(
        "erasure_lightning.attacks.trajectory_noise:TrajectoryNoise",
        "Adds noise along the edited model's trajectory, and counts the best of several tries",
        "Lu et al. 2025, https://arxiv.org/abs/2505.17013",
    ),
    "ClassifierGuidance": BuiltIn(
        "erasure_lightning.attacks.classifier_guidance:ClassifierGuidance",
        "Steers the edited model to the concept by a classifier of noisy latents, without words",
        "after Lu et al. 2025, https://arxiv.org/abs/2505.17013",
    ),
    "Misspelling": BuiltIn(
        "erasure_lightning.attacks.misspelling:Misspelling",
        "Asks for the concept with typing errors in its name",
        "",
    ),
    "Translation": BuiltIn(
        "erasure_lightning.attacks.translation:Translation",
        "Asks for the concept by its name in other languages",
        "",
    ),
}
