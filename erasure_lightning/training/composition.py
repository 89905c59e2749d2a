"""`Composition`: the module of an edit that is the sum of several."""

from typing import Any

from erasure_lightning.training.finished_edit import FinishedEdit


class Composition(FinishedEdit):
    """Several edits of one model as one, which is measured like any other; `compose` makes it.

    Args:
        tensors: Names of the edited tensors, by the pipeline's components.
        kwargs: Arguments of `ErasureModule`.
    """

    kind = "composition"
    refusal = (
        "A composition is not trained: `erasure compose RUN RUN --out PATH` makes it of edits."
    )

    def __init__(self, *, tensors: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.edited = frozenset(tensors)
