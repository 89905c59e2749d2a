"""What every retention callback shares: retained prompts, a weight, a schedule, and its place in
the loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.checks import require, require_finite
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.text_files import read_prompts_file
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.prompt_states import cosine_matrix, input_gram


class RetentionCallback(Callback, ABC):
    """Adds a weighted term to any method, so that what should survive does.

    To the loss of a gradient method, where its value is logged as ``loss/<name>`` and its gradient
    norm as ``gradient/<name>``; to the equations of a closed form as text states whose images must
    stay.

    Args:
        weight: Of the term in the loss, or of each retained prompt in a closed form, at least 0.
        prompts: What is retained: prompts, or a text file with one a line. Default: the world's
            labels (everyday things where there is no world) in its captions, with the anchors and
            the concepts' kin (other styles, other people), without the concepts, their domains, and
            what is nearest.
        nearness: Share of the labels that count as other things, above 0 and at most 1: the rest,
            those nearest to a concept in the original's end-of-text states, count as its domain.
            Ranks mean the same in every encoder; cosines do not.
        ramp: Steps over which the weight rises from 0; at least 0.

    Raises:
        ErasureError: If a number is out of range, or the file is missing or empty.
    """

    #: What it is called in logs.
    name: str
    #: Whether it holds what the text encoder says, and so has nothing to do where none is edited.
    of_states = False

    def __init__(
        self,
        weight: float = 1.0,
        prompts: list[str] | str | None = None,
        nearness: float = 0.98,
        ramp: int = 0,
    ) -> None:
        require(type(self).__name__, at_least=0, weight=weight, ramp=ramp)
        require(type(self).__name__, above=0, at_most=1, nearness=nearness)
        self.weight = weight
        self.ramp = ramp
        self.nearness = nearness
        self.prompts = (
            read_prompts_file(prompts, type(self).__name__) if isinstance(prompts, str) else prompts
        )
        self.retained: list[str] = []
        self._label = ""

    @property
    def state_key(self) -> str:
        """Tells two callbacks of one class apart in a checkpoint."""
        given = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "retained"}
        plain = {
            k: v if isinstance(v, int | float | str) else type(v).__name__ for k, v in given.items()
        }
        return self._generate_state_key(**plain)

    @abstractmethod
    def term(self, module: GradientErasure) -> Tensor:
        """The unweighted loss, a scalar; 0 while the model is its original."""

    def gram(self, module: ErasureModule, source: TextInput) -> Tensor:
        """What a closed form must hold, ``(D, D)`` in float64: by default all that a text input
        reads of the prompts.

        Where the images of its inputs under the edited maps stay, so do the predictions. Each
        prompt counts once: its positions share the weight.
        """
        length = source.rows(module.original.encode(self.retained[:1])).shape[1]
        return input_gram(module.original, self.retained, source) / length

    def prepare(self, module: GradientErasure) -> None:
        """Compute what does not change while training; the retained prompts are there."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add itself to the module's retention callbacks, under a name of its own.

        Raises:
            ErasureError: If a number is NaN or infinite, or a batch is empty.
        """
        if stage != "fit":
            return
        require_finite(type(self).__name__, vars(self))
        require(type(self).__name__, at_least=1, batch_size=getattr(self, "batch_size", None))
        module = cast(ErasureModule, pl_module)
        if self in module.retention:
            return
        same = sum(isinstance(callback, type(self)) for callback in module.retention)
        self._label = f"{self.name}_{same + 1}" if same else self.name
        module.retention.append(self)

    @property
    def label(self) -> str:
        """Name of the term in logs, numbered where a module has several callbacks of a class."""
        return self._label or self.name

    def weight_at(self, step: int) -> float:
        """Weight of the term at a step, counted from 0."""
        return self.weight * min((step + 1) / self.ramp, 1.0) if self.ramp else self.weight

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the retained prompts and prepare."""
        module = cast(ErasureModule, pl_module)
        self.retained = (
            list(self.prompts) if self.prompts else retained_prompts(module, self.nearness)
        )
        self._warn_without_text_edit(module)
        if isinstance(module, GradientErasure):
            self.prepare(module)

    def _warn_without_text_edit(self, module: ErasureModule) -> None:
        if self.of_states and not module.backbone.edits_text(module.editable()):
            rank_zero_warn(
                f"{type(self).__name__} holds text states, and {type(module).__name__} edits no"
                " text encoder: it will stay at 0. LocalNoisePreservation holds what the denoiser"
                " says."
            )

    def draw(self, count: int) -> list[int]:
        """``count`` different retained prompts by number, or all if there are fewer."""
        order: list[int] = torch.randperm(len(self.retained))[:count].tolist()
        return order


@torch.no_grad()
def retained_prompts(module: ErasureModule, nearness: float) -> list[str]:
    """Captions of everything an edit must leave alone: the anchors, the concepts' kin, other
    labels.

    Raises:
        ErasureError: If nothing is left.
    """
    vocabulary = Vocabulary(module.backbone.world, module.concepts)
    labels = far_from(module, vocabulary.others, nearness)
    captions = [caption for label in labels for caption in vocabulary.retained_captions(label)]
    captions += vocabulary.related_captions()
    if not captions:
        raise ErasureError(
            "Retention needs something to retain; found that concepts and domains are all there is."
            " Name prompts."
        )
    return captions


@torch.no_grad()
def far_from(module: ErasureModule, labels: Sequence[str], nearness: float) -> list[str]:
    """Labels without those whose end-of-text states are nearest to a thing's; anchors always are
    among them.

    Args:
        module: The method, with its original.
        labels: Any number.
        nearness: Share of the labels that is far; of the others as many as there are, rounded down.
    """
    things = [c.name for c in module.concepts if c.kind != "style"]
    near = int((1 - nearness) * len(labels) + 1e-9)
    if not things or not near:
        return list(labels)
    original, anchors = module.original, {c.anchor for c in module.concepts}
    states = (original.summarize(original.embed(words)) for words in (labels, things))
    order = cosine_matrix(*states).amax(dim=1).argsort(descending=True)
    dropped = {labels[place] for place in order[:near].tolist()} - anchors
    return [label for label in labels if label not in dropped]
