"""`Imported`: an edit that other code made, to be measured, attacked, applied and exported."""

from typing import Any

from torch import Tensor, nn

from erasure_lightning.errors import ErasureError
from erasure_lightning.training.base import ErasureModule


class Imported(ErasureModule):
    """Holds an edit of other code; it has no training of its own.

    Args:
        parameters: Names of the edited parameters, by the pipeline's components.
        code: Repository and commit of the code whose layout the edit was in.
        kwargs: Arguments of `ErasureModule`.
    """

    def __init__(self, *, parameters: list[str], code: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._edited = frozenset(parameters)
        self.code = code

    def editable(self) -> dict[str, nn.Parameter]:
        """The edited parameters.

        Raises:
            ErasureError: If the backbone lacks one.
        """
        prefixes = tuple(f"{part}." for part in self.backbone.components)
        named = {
            self.backbone.component_name(name): (name, parameter)
            for name, parameter in self.backbone.named_parameters()
            if name.startswith(prefixes)
        }
        if missing := sorted(self._edited - named.keys()):
            raise ErasureError(
                f"The imported edit needs {len(self._edited)} parameters of {self.backbone.name};"
                f" found {len(missing)} missing, {missing[0]} first. It was made on another model."
            )
        return dict(named[name] for name in named if name in self._edited)

    def trainable(self) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def on_fit_start(self) -> None:
        """Refuse training.

        Raises:
            ErasureError: Always.
        """
        raise ErasureError(
            "An imported edit is measured, attacked, applied and exported; it cannot be trained"
            " further. Fit a method, with base_edit if it is to follow this edit."
        )

    def training_step(self, *_: Any) -> Tensor:
        """No step: `on_fit_start` raises before."""
        raise NotImplementedError

    def configure_optimizers(self) -> None:
        """No optimizer."""
