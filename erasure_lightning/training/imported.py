"""`Imported`: an edit that other code made, to be measured, attacked, applied and exported."""

from typing import Any

from erasure_lightning.training.finished_edit import FinishedEdit


class Imported(FinishedEdit):
    """An edit of other code.

    Args:
        parameters: Names of the edited parameters, by the pipeline's components.
        code: Repository and commit of the code whose layout the edit was in.
        kwargs: Arguments of `ErasureModule`.
    """

    kind = "imported edit"
    refusal = (
        "An imported edit is measured, attacked, applied and exported; it cannot be trained"
        " further. Fit a method, with base_edit if it is to follow this edit."
    )

    def __init__(self, *, parameters: list[str], code: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.edited = frozenset(parameters)
        self.code = code
