"""`Progress`: Lightning's progress bar with descriptions of this package."""

from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's rich progress bar, with the descriptions erasing, measuring and drawing.

    Args:
        refresh_rate: Steps between two updates; updating at every step took a sixth of the time of
            a small run.
    """

    def __init__(self, refresh_rate: int = 5) -> None:
        super().__init__(refresh_rate=refresh_rate)

    @property
    def test_description(self) -> str:
        """Description of ``test``."""
        return "measuring"

    @property
    def validation_description(self) -> str:
        """Description of ``validate``."""
        return "measuring"

    @property
    def predict_description(self) -> str:
        """Description of ``predict``."""
        return "drawing"

    def _get_train_description(self, current_epoch: int) -> str:
        return f"erasing with {type(self.trainer.lightning_module).__name__}"
