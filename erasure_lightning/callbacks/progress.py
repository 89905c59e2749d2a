"""The progress bar says what is being done."""

from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's bar with our words: erasing, measuring, drawing."""

    @property
    def test_description(self) -> str:
        """Of ``test``."""
        return "measuring"

    @property
    def validation_description(self) -> str:
        """Of ``validate``."""
        return "measuring"

    @property
    def predict_description(self) -> str:
        """Of ``predict``."""
        return "drawing"

    def _get_train_description(self, current_epoch: int) -> str:
        return f"erasing with {type(self.trainer.lightning_module).__name__}"
