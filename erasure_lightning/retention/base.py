"""`RetentionCallback`: base of the callbacks that retain what an edit must not change."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from hashlib import sha256
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.checks import require, require_finite
from erasure_lightning.concepts.prompt_lists import (
    is_shipped_list,
    read_prompt_list,
    without_concepts,
)
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.distributed.lightning_internals import training_precision
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.arguments import require_choices
from erasure_lightning.files.words import folded
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.input_grams import mean_input_gram
from erasure_lightning.training.prompt_states import cosine_matrix

#: Arguments under the names that they have in the keys of checkpoints.
_IN_KEYS = {"retained_share": "nearness"}

#: Types of arguments that are part of a key as they are.
_PLAIN = (int, float, str)


class RetentionCallback(Callback, ABC):
    """Weighted term that retains prompts, in the loss or the equations of any method.

    In the loss of a gradient method its value is logged as ``loss/<label>`` and the norm of its
    gradient as ``gradient/<label>``; in a closed form it retains the outputs for text states.

    Args:
        weight: Weight of the term in the loss, or of each retained prompt in a closed form, at
            least 0.
        prompts: Retained prompts, a text file with one a line, or the name of a shipped list
            (``things``, ``artists``, ``roles``, ``captions``), of which those that name a concept
            or its domain are left out. By default the world's labels (everyday objects without a
            world) in its captions, with the anchors and related concepts (other styles, other
            people), without the concepts, their domains and the nearest labels.
        retained_share: Share of the labels that is retained, above 0 and at most 1: the others,
            nearest to a concept in the original's end-of-text states, count as its domain. Ranks
            mean the same in every encoder; cosines do not.
        ramp: Steps over which the weight rises from 0, at least 0.

    Raises:
        ErasureError: If a number is out of range, the list is empty, or the file is missing or
            empty.
    """

    #: Name in logs.
    name: str
    #: Whether it retains states of the text encoder, and is 0 for edits of the denoiser alone.
    of_states = False

    def __init__(
        self,
        weight: float = 1.0,
        prompts: list[str] | str | None = None,
        retained_share: float = 0.98,
        ramp: int = 0,
    ) -> None:
        require(type(self).__name__, at_least=0, weight=weight, ramp=ramp)
        require(type(self).__name__, above=0, at_most=1, retained_share=retained_share)
        self.weight = weight
        self.ramp = ramp
        self.retained_share = retained_share
        self.retain(prompts)
        self.retained: list[str] = []
        self._label = ""

    def retain(self, prompts: Sequence[str] | str | None) -> None:
        """Set the retained prompts.

        Args:
            prompts: As in the constructor.

        Raises:
            ErasureError: If the list is empty, or a file is missing or empty.
        """
        self._is_shipped = isinstance(prompts, str) and is_shipped_list(prompts)
        if isinstance(prompts, str):
            prompts = read_prompt_list(prompts, type(self).__name__)
        require_prompts(type(self).__name__, prompts)
        self.prompts = None if prompts is None else list(prompts)

    @property
    def state_key(self) -> str:
        """Key of the callback in a checkpoint, different for different arguments."""
        key: dict[str, Any] = {}
        for name, value in vars(self).items():
            if not name.startswith("_") and name != "retained":
                is_plain = isinstance(value, _PLAIN)
                key[_IN_KEYS.get(name, name)] = value if is_plain else _named_with_arguments(value)
        if self.prompts is not None:
            key["prompts"] = sha256("\n".join(self.prompts).encode()).hexdigest()[:16]
        return self._generate_state_key(**key)

    @abstractmethod
    def term(self, module: GradientErasure) -> Tensor:
        """The unweighted term, a scalar; 0 if the edited model equals its original."""

    def gram(self, module: ErasureModule, source: TextInput) -> Tensor:
        """Gram matrix ``(D, D)``, in float64, of the inputs whose outputs a closed form retains.

        By default all inputs of the retained prompts: if the edited maps retain their outputs, the
        predictions are retained too. The positions of a prompt share its weight.
        """
        return mean_input_gram(module.original, self.retained, source)

    def prepare(self, module: GradientErasure) -> None:
        """Compute constants of the training, once the retained prompts are known."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the callback to the module's retention terms, under a unique label.

        Raises:
            ErasureError: If a number is NaN or infinite, or a batch is empty.
        """
        if stage != "fit":
            return
        require_finite(type(self).__name__, vars(self))
        require_choices(type(self), vars(self))
        require(type(self).__name__, at_least=1, batch_size=getattr(self, "batch_size", None))
        module = cast(ErasureModule, pl_module)
        if self in module.retention:
            return
        same = sum(isinstance(callback, type(self)) for callback in module.retention)
        self._label = f"{self.name}_{same + 1}" if same else self.name
        module.retention.append(self)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the callback from the module, whose next fit may be without it."""
        retention = cast(ErasureModule, pl_module).retention
        if stage == "fit" and self in retention:
            retention.remove(self)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the callback from the module, as `teardown`, which Lightning then leaves out."""
        self.teardown(trainer, pl_module, "fit")

    @property
    def label(self) -> str:
        """Name of the term in logs, numbered where a module has several callbacks of a class."""
        return self._label or self.name

    def weight_at(self, step: int) -> float:
        """Weight of the term at a step, counted from 0."""
        return self.weight * min((step + 1) / self.ramp, 1.0) if self.ramp else self.weight

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the retained prompts, and prepare the term."""
        module = cast(ErasureModule, pl_module)
        prompts = self.prompts or retained_prompts(module, self.retained_share)
        self.retained = (
            without_concepts(prompts, module.concepts) if self._is_shipped else [*prompts]
        )
        self._warn_without_text_edit(module)
        if isinstance(module, GradientErasure):
            with training_precision(module):  # as the term will be computed
                self.prepare(module)

    def _warn_without_text_edit(self, module: ErasureModule) -> None:
        if self.of_states and not module.backbone.edits_text(module.editable()):
            rank_zero_warn(
                f"{type(self).__name__} retains text states, and {type(module).__name__} edits no"
                " text encoder: it will stay at 0. LocalNoisePreservation retains the denoiser's"
                " predictions."
            )

    def draw(self, count: int) -> list[int]:
        """Numbers of ``count`` different retained prompts, or of all if there are fewer."""
        order: list[int] = torch.randperm(len(self.retained))[:count].tolist()
        return order


def _named_with_arguments(value: Any) -> str:
    """Class of an object, with its plain public attributes: a source of latents, for instance."""
    attributes = getattr(value, "__dict__", {}).items()
    plain = {k: v for k, v in attributes if isinstance(v, _PLAIN) and not k.startswith("_")}
    return f"{type(value).__name__}{plain or ''}"


def require_prompts(owner: str, prompts: Any) -> None:
    """Raise for an empty list of prompts, or none of text; without a list, the default is retained.

    Args:
        owner: What needs prompts, for the message.
        prompts: The prompts, or groups of them.

    Raises:
        ErasureError: If there are none in the list, or something else than text is.
    """
    if prompts is None:
        return
    texts = prompts if isinstance(prompts, Collection) else [prompts]
    if not all(isinstance(text, str) for text in texts):
        raise ErasureError(f"{owner} needs prompts as a list of texts; found {prompts!r}.")
    if not prompts:
        raise ErasureError(
            f"{owner} needs at least one prompt; found an empty list. Leave prompts out for its"
            " default."
        )


@torch.no_grad()
def retained_prompts(module: ErasureModule, retained_share: float) -> list[str]:
    """Captions of what an edit must retain: anchors, related concepts and other labels.

    Args:
        module: The method, with its original.
        retained_share: Share of the labels that is retained.

    Raises:
        ErasureError: If there are none.
    """
    vocabulary = Vocabulary(module.backbone.world, module.concepts)
    labels = far_from(module, vocabulary.others, retained_share)
    captions = [caption for label in labels for caption in vocabulary.retained_captions(label)]
    captions += vocabulary.related_captions()
    if not captions:
        raise ErasureError(
            "Retention needs prompts; found no label of the world beside concepts and domains."
            " Give prompts."
        )
    return captions


@torch.no_grad()
def far_from(module: ErasureModule, labels: Sequence[str], retained_share: float) -> list[str]:
    """Labels without those whose end-of-text states are nearest to a concept's.

    Args:
        module: The method, with its original.
        labels: Any number; anchors among them are always returned.
        retained_share: Share of the labels that is returned, rounded up.
    """
    names = [c.name for c in module.concepts if c.kind != "style"]
    count = int((1 - retained_share) * len(labels) + 1e-9)
    if not names or not count:
        return list(labels)
    original = module.original
    states = (original.summarize(original.embed(words)) for words in (labels, names))
    order = cosine_matrix(*states).amax(dim=1).argsort(descending=True)
    nearest = {labels[index] for index in order[:count].tolist()}
    anchors = {folded(c.anchor) for c in module.concepts}
    return [label for label in labels if folded(label) in anchors or label not in nearest]
