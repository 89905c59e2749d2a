"""Minimal methods and an attack, to test base classes, callbacks and the registry with."""

from lightning import Trainer
from torch.nn.functional import mse_loss

from erasure_lightning.attacks.base import AttackResult, ConceptAttack
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.gradient import GradientErasure

#: A run of two steps on a tiny model, as arguments of the command line.
TINY = [
    *("--model", "trivial.Distillation", "--model.backbone", "TinyBackbone"),
    *("--model.lr", "1e-3"),
    *("--data.others", "2", "--data.steps", "2", "--data.seeds", "2", "--data.batch_size", "2"),
    *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"),
    *("--model.concepts", "[{name: cat, anchor: dog}]"),
]


def method_options(name, backbone="TinyBackbone", concepts="[{name: cat, anchor: dog}]"):
    """Arguments of the command line that choose a method, its concepts and its backbone."""
    return ["--model", name, "--model.concepts", concepts, "--model.backbone", str(backbone)]


def quiet_trainer(**arguments):
    """A trainer on the CPU without logger, checkpoints, progress bar and summary."""
    quiet = {"logger": False, "enable_checkpointing": False}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", **quiet | arguments)


class Distillation(GradientErasure):
    """Distils the original's prediction for the anchor into that for the concept."""

    def erasure_loss(self, batch):
        return mse_loss(self.student(batch), batch.teacher.predict(batch.anchor_prompts))


class Redirection(ClosedFormErasure):
    """Maps all token states of the concept to the outputs of the anchor's."""

    def solve(self):
        return self.solve_each(self._fill, 0.1)

    def _fill(self, equations, source):
        names = [concept.name for concept in self.concepts]
        anchors = [concept.anchor for concept in self.concepts]
        rows, targets = (
            source.rows(self.original.encode(words)).flatten(0, 1) for words in (names, anchors)
        )
        equations.redirect(rows, targets)


class Idle(GradientErasure):
    """Changes no weight: the negative control."""

    def erasure_loss(self, batch):
        return 0 * next(iter(self.editable().values())).sum()


class Exploding(GradientErasure):
    """Has a loss of NaN."""

    def erasure_loss(self, batch):
        return next(iter(self.editable().values())).sum() * float("nan")


class PlainPrompt(ConceptAttack):
    """Generates from the plain prompt: the negative control."""

    def find(self, target, case):
        conditioning = target.edited.encode([case.prompt])
        return AttackResult(target.generate(conditioning, case.seeds), prompt=case.prompt)
