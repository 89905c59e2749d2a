"""`Composition`: the module of an edit that is the sum of several."""

from typing import Any, NoReturn

from torch import nn

from erasure_lightning.errors import ErasureError
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.base_edits import present_parts


class Composition(ErasureModule):
    """Several edits of one model as one, which is measured like any other; `compose` makes it.

    Args:
        tensors: Names of the edited tensors, by the pipeline's components.
        kwargs: Arguments of `ErasureModule`.
    """

    def __init__(self, *, tensors: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tensors = frozenset(tensors)

    def editable(self) -> dict[str, nn.Parameter]:
        """The parameters of these names."""
        return {
            f"{part}.{name}": parameter
            for part, module in present_parts(self.backbone).items()
            for name, parameter in module.named_parameters()
            if self.backbone.component_name(f"{part}.{name}") in self.tensors
        }

    def configure_optimizers(self) -> NoReturn:
        """Refuse training.

        Raises:
            ErasureError: Always.
        """
        raise ErasureError(
            "A composition is not trained: `erasure compose RUN RUN --out PATH` makes it of edits."
        )
