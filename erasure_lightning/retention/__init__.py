"""Retention callbacks: one a file, and one line each in `RETENTION_CALLBACKS`."""

from typing import TYPE_CHECKING

from erasure_lightning.discovery import BuiltIn, load_built_in

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback


def __getattr__(name: str) -> type["Callback"]:
    """The class of a retention callback, imported when it is first used."""
    cls: type[Callback] = load_built_in(__name__, RETENTION_CALLBACKS, name)
    return cls


def __dir__() -> list[str]:
    return sorted([*globals(), *RETENTION_CALLBACKS])


RETENTION_CALLBACKS = {
    "GlobalSemanticAlignment": BuiltIn(
        "erasure_lightning.retention.global_alignment:GlobalSemanticAlignment",
        "Retains the similarities of retained prompts to each other, in the text encoder's states",
        "Zhu et al. 2025, https://arxiv.org/abs/2506.09363",
    ),
    "LocalNoisePreservation": BuiltIn(
        "erasure_lightning.retention.local_noise:LocalNoisePreservation",
        "Retains the denoiser's predictions on retained prompts",
        "Zhu et al. 2025, https://arxiv.org/abs/2506.09363",
    ),
    "LocalStatePreservation": BuiltIn(
        "erasure_lightning.retention.local_states:LocalStatePreservation",
        "Retains the text encoder's states on retained prompts",
        "",
    ),
    "BeyondConceptRegularization": BuiltIn(
        "erasure_lightning.retention.beyond_concept:BeyondConceptRegularization",
        "Retains predictions at random text states beyond the concepts' own",
        "Liu et al. 2024, https://arxiv.org/abs/2410.09140",
    ),
    "UnconditionalDrift": BuiltIn(
        "erasure_lightning.retention.unconditional_drift:UnconditionalDrift",
        "Retains the unconditional prediction",
        "Hong et al. 2024, https://arxiv.org/abs/2312.12807",
    ),
    "RetentionMonitor": BuiltIn(
        "erasure_lightning.retention.monitor:RetentionMonitor",
        "Measures erasure and retention while training, and stops at limits",
        "",
    ),
}
