"""`Progress`: Lightning's progress bar with descriptions of this package."""

from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's rich progress bar, with the descriptions erasing, measuring and generating."""

    test_description = validation_description = "measuring"
    predict_description = "generating"

    def __init__(self) -> None:
        super().__init__(refresh_rate=5)  # at every step it took a sixth of a small run's time

    def _get_train_description(self, current_epoch: int) -> str:
        return f"erasing with {type(self.trainer.lightning_module).__name__}"
