"""`Progress`: Lightning's progress bar with descriptions of this package."""

from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's rich progress bar, with the descriptions erasing, measuring and drawing."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5)  # at every step it took a sixth of a small run's time

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
