"""`FinishedEdit`: base of edits that are measured like those of any method, and not trained."""

from typing import Any, ClassVar

from torch import Tensor, nn

from erasure_lightning.errors import ErasureError
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.base_edits import present_parts


class FinishedEdit(ErasureModule):
    """Holds an edit of named parameters; it has no training of its own."""

    #: What the edit is in errors, and what to do where it is to be trained.
    kind: ClassVar[str]
    refusal: ClassVar[str]
    #: Names of the edited parameters, by the pipeline's components.
    edited: frozenset[str]

    def editable(self) -> dict[str, nn.Parameter]:
        """The edited parameters.

        Raises:
            ErasureError: If the backbone lacks one.
        """
        named = {
            self.backbone.component_name(f"{part}.{name}"): (f"{part}.{name}", parameter)
            for part, module in present_parts(self.backbone).items()
            for name, parameter in module.named_parameters()
        }
        if missing := sorted(self.edited - named.keys()):
            raise ErasureError(
                f"The {self.kind} needs {len(self.edited)} parameters of {self.backbone.name};"
                f" found {len(missing)} missing, {missing[0]} first. It is of another base model."
            )
        return dict(named[name] for name in named if name in self.edited)

    def trainable(self) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def on_fit_start(self) -> None:
        """Refuse training.

        Raises:
            ErasureError: Always.
        """
        raise ErasureError(self.refusal)

    def training_step(self, *_: Any) -> Tensor:
        """No step: `on_fit_start` raises before."""
        raise NotImplementedError

    def configure_optimizers(self) -> None:
        """No optimizer."""
