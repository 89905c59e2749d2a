"""Concept erasure in text-to-image diffusion models.

`erase` erases concepts from a diffusers pipeline; `fit` trains a method and writes a run folder.

Example:
    >>> from erasure_lightning import erase
    >>> from erasure_lightning.backbones.tiny import TinyBackbone
    >>> pipeline = TinyBackbone().to_pipeline()
    >>> erase(pipeline, "cat", method="UCE", anchor="dog", progress_bar=False)
    Edit(UCE of cat, 8 tensors)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasure_lightning.api.compose import compose
    from erasure_lightning.api.convert_config import convert_config
    from erasure_lightning.api.erase import erase
    from erasure_lightning.api.evaluate import attack, evaluate
    from erasure_lightning.api.export import export_edit
    from erasure_lightning.api.fit import fit
    from erasure_lightning.api.import_edit import import_edit
    from erasure_lightning.attacks.target import AttackSettings
    from erasure_lightning.backbones.base import Backbone
    from erasure_lightning.backbones.loading import load_backbone
    from erasure_lightning.concepts.concept import Concept
    from erasure_lightning.concepts.worlds import find_world
    from erasure_lightning.data.datamodule import PromptData
    from erasure_lightning.edits.applied import Edit, apply_edit, load_edit
    from erasure_lightning.errors import ErasureError
    from erasure_lightning.retention.base import RetentionCallback
    from erasure_lightning.training.base import ErasureModule
    from erasure_lightning.training.closed_form import ClosedFormErasure
    from erasure_lightning.training.gradient import GradientErasure
    from erasure_lightning.training.trajectory_bank import TrajectoryBank

__all__ = [
    "AttackSettings",
    "Backbone",
    "ClosedFormErasure",
    "Concept",
    "Edit",
    "ErasureError",
    "ErasureModule",
    "GradientErasure",
    "PromptData",
    "RetentionCallback",
    "TrajectoryBank",
    "apply_edit",
    "attack",
    "compose",
    "convert_config",
    "erase",
    "evaluate",
    "export_edit",
    "find_world",
    "fit",
    "import_edit",
    "load_backbone",
    "load_edit",
]

#: Where each public name is defined; it is imported when it is first used.
_DEFINED_IN = {
    "AttackSettings": "attacks.target",
    "Backbone": "backbones.base",
    "ClosedFormErasure": "training.closed_form",
    "Concept": "concepts.concept",
    "Edit": "edits.applied",
    "ErasureError": "errors",
    "ErasureModule": "training.base",
    "GradientErasure": "training.gradient",
    "PromptData": "data.datamodule",
    "RetentionCallback": "retention.base",
    "TrajectoryBank": "training.trajectory_bank",
    "apply_edit": "edits.applied",
    "attack": "api.evaluate",
    "compose": "api.compose",
    "convert_config": "api.convert_config",
    "erase": "api.erase",
    "evaluate": "api.evaluate",
    "export_edit": "api.export",
    "find_world": "concepts.worlds",
    "fit": "api.fit",
    "import_edit": "api.import_edit",
    "load_backbone": "backbones.loading",
    "load_edit": "edits.applied",
}


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
