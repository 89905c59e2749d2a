"""Methods and an attack without a paper: what the base classes, callbacks and the registry are
tested with.
"""

from torch.nn.functional import mse_loss

from erasure_lightning.attacks.base import ConceptAttack, Found
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.gradient import GradientErasure

#: A run of two steps on a tiny model, as words of a command line.
TINY = [
    "--model",
    "trivial.Distillation",
    "--model.backbone",
    "TinyBackbone",
    "--model.lr",
    "1e-3",
    "--data.others",
    "2",
    "--data.steps",
    "2",
    "--data.seeds",
    "2",
    "--data.batch_size",
    "2",
    "--trainer.max_steps",
    "2",
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.log_every_n_steps",
    "1",
]
TINY += ["--model.concepts", "[{name: cat, anchor: dog}]"]


class Distillation(GradientErasure):
    """Predicts for the concept what the original predicts for the anchor."""

    def erasure_loss(self, batch):
        return mse_loss(self.student(batch), batch.teacher.predict(batch.targets))


class Redirection(ClosedFormErasure):
    """Sends all that is read of the concept where the anchor's went."""

    def solve(self):
        return self.solve_each(self._fill, 0.1)

    def _fill(self, equations, source):
        words = (
            [concept.name for concept in self.concepts],
            [concept.anchor for concept in self.concepts],
        )
        equations.redirect(
            *(source.rows(self.original.encode(each)).flatten(0, 1) for each in words)
        )


class Idle(GradientErasure):
    """Does nothing at all: the negative control."""

    def erasure_loss(self, batch):
        return 0 * next(iter(self.editable().values())).sum()


class Exploding(GradientErasure):
    """Loses its loss at once."""

    def erasure_loss(self, batch):
        return next(iter(self.editable().values())).sum() * float("nan")


class Nothing(ConceptAttack):
    """Asks as plainly as anybody: the negative control."""

    def find(self, target, case):
        return Found(
            target.draw(target.edited.encode([case.sentence]), case.seeds), prompt=case.sentence
        )
