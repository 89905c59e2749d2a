"""`Composition`: the module of an edit that is the sum of several."""

from typing import Any, NoReturn

from torch import nn

from erasure_lightning.errors import ErasureError
from erasure_lightning.training.base import ErasureModule


class Composition(ErasureModule):
    """Several edits of one model as one, which is measured like any other; `compose` makes it.

    Args:
        tensors: Names of the edited tensors, by the pipeline's components.
        kwargs: Arguments of every method.
    """

    def __init__(self, *, tensors: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tensors = frozenset(tensors)

    def editable(self) -> dict[str, nn.Parameter]:
        """The parameters of these names."""
        return {
            name: parameter
            for part, component in self.backbone.components.items()
            for name, parameter in self.backbone.named_parameters()
            if name.startswith(f"{part}.") and self.backbone.component_name(name) in self.tensors
        }

    def configure_optimizers(self) -> NoReturn:
        """Refuse training.

        Raises:
            ErasureError: Always.
        """
        raise ErasureError(
            "A composition is not trained: `erasure compose RUN RUN --out PATH` makes it of edits."
        )
