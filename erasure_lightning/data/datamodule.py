"""`PromptData`: prompts to train on, and images to generate when an edit is measured or used."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch, require_templates
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.data.image_plan import (
    ImageBatch,
    ImageLoader,
    ImageRequest,
    measured_prompts,
    read_prompts,
)
from erasure_lightning.errors import ErasureError

_T = TypeVar("_T")


class Draws(Generic[_T]):
    """Loader whose batches are a function of their number, for runs that are resumed.

    Numbers count the batches of all epochs. Lightning saves and restores any loader with
    ``state_dict`` and ``load_state_dict``, and counts the remaining batches of an epoch itself.

    Args:
        draw: Makes the batch of a number.
        length: Batches of an epoch.
    """

    def __init__(self, draw: Callable[[int], _T], length: int) -> None:
        self.draw = draw
        self.length = length
        self._drawn = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[_T]:
        for _ in range(self.length):
            self._drawn += 1
            yield self.draw(self._drawn - 1)

    def state_dict(self) -> dict[str, int]:
        """The number of drawn batches of all epochs."""
        return {"given": self._drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after them."""
        self._drawn = state["given"]


class PromptData(LightningDataModule):
    """Prompts to train on, and the plan of images by which an edit is measured.

    Args:
        batch_size: Concept prompts a training step (on each rank), at least 1.
        steps_per_concept: Training steps for each concept in an epoch, at least 1; steps alternate
            between concepts. By default an epoch has the trainer's ``max_steps``, for any number of
            concepts, or 1,000 steps where those are unbounded.
        templates: Sentences with ``{}`` for the concept (and ``{thing}`` for something retained, in
            those of a style); the concepts' own by default.
        seeds: Seeds of each measured prompt, at least 2 so that there is an interval.
        others: Number of other labels that are generated, spread over the vocabulary.
        neighbours: Names of things similar to the concept, which are measured too.
        steps: Sampling steps, at least 1; the world's or the stock pipeline's by default.
        guidance: Scale of classifier-free guidance, at least 0; by default as the steps.
        image_size: Height and width in pixels, at least 1; the model's own by default.
        image_batch_size: Images generated in a batch, at least 1.
        originals: Cache folder of the original model's images, for runs with the same protocol.
        prompts: A CSV for ``predict`` with the columns ``prompt`` and ``seed``, and optionally
            ``guidance``, ``steps``, ``height`` and ``width``, which have precedence; or in the
            columns of I2P, Ring-A-Bell, MMA-Diffusion or SPEED.

    Raises:
        ErasureError: If a number is out of range, templates or neighbours are no list, the cache
            is a file, or the CSV is missing, empty or malformed.
    """

    def __init__(
        self,
        batch_size: int = 4,
        steps_per_concept: int | None = None,
        templates: list[str] | None = None,
        seeds: int = 3,
        others: int = 54,
        neighbours: list[str] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        image_size: int | None = None,
        image_batch_size: int = 32,
        originals: str | None = None,
        prompts: str | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.steps_per_concept = steps_per_concept
        self.templates = templates
        self.seeds = seeds
        self.others = others
        self.neighbours = neighbours or []
        self.steps = steps
        self.guidance = guidance
        self.image_size = image_size
        self.image_batch_size = image_batch_size
        self.originals = originals
        self.prompts = prompts
        self._check()

    def _check(self) -> None:
        names = "batch_size", "steps_per_concept", "others", "steps", "image_size"
        require("PromptData", at_least=1, **{name: getattr(self, name) for name in names})
        require("PromptData", at_least=1, image_batch_size=self.image_batch_size)
        require("PromptData", at_least=2, seeds=self.seeds)
        require("PromptData", at_least=0, guidance=self.guidance)
        require_templates("PromptData", self.templates or ())
        if isinstance(self.neighbours, str):
            raise ErasureError(f"PromptData needs neighbours in a list; found {self.neighbours!r}.")
        if self.originals is not None and Path(self.originals).is_file():
            raise ErasureError(
                f"PromptData needs a folder as originals; found the file {self.originals}."
            )

    @property
    def _module(self) -> Any:
        assert self.trainer is not None  # Lightning attaches it before any hook
        return self.trainer.lightning_module

    @property
    def vocabulary(self) -> Vocabulary:
        """What the model generates, and what of it is erased."""
        return Vocabulary(self._module.backbone.world, self._module.concepts)

    def setup(self, stage: str) -> None:
        """Hand the module the templates, the steps of its schedule and the image cache."""
        module = self._module
        module.prompt_templates = self.templates
        module.originals = self.originals
        if stage == "fit" and module.automatic_optimization:
            module.training_steps = self.training_steps
        if stage == "predict":
            self._requests(1, 1.0)  # a mistake in the file is found before a model is loaded

    def train_dataloader(self) -> Draws[PromptBatch]:
        """Concept prompts, a function of seed, rank and step."""
        trainer = cast(Any, self.trainer)
        module = self._module
        self._check_sampling()
        warn_of_cut(module.backbone, module.prompts.every(), "sentences to train on")
        draw = partial(module.prompts.batch, self.batch_size, salt=1)
        return Draws(draw, self._epoch_steps * trainer.accumulate_grad_batches)

    @property
    def _epoch_steps(self) -> int:
        """Steps of an epoch, no more than the trainer's ``max_steps``.

        Lightning's own estimate makes the loader before a checkpoint is restored, which then does
        not reach it.
        """
        most = cast(Any, self.trainer).max_steps
        bounds = [most] if most > 0 else []
        if self.steps_per_concept is not None:
            bounds.append(self.steps_per_concept * len(self._module.concepts))
        return min(bounds, default=1000)

    @property
    def training_steps(self) -> int:
        """Steps of a run: those of all its epochs, and no more than the trainer's ``max_steps``.

        Raises:
            ErasureError: If the trainer bounds neither, or ``max_steps`` ends before a second
                epoch.
        """
        trainer = cast(Any, self.trainer)
        epochs = int(trainer.max_epochs)
        most = int(trainer.max_steps)
        limit = trainer.limit_train_batches
        batches = self._epoch_steps * trainer.accumulate_grad_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps: int = math.ceil(batches / trainer.accumulate_grad_batches)
        if epochs < 0 and most < 0:
            raise ErasureError(
                "A run needs an end; found max_epochs -1 and max_steps -1, which set none. Give the"
                " trainer max_steps, or max_epochs with steps_per_concept of the data."
            )
        if epochs > 1 and 0 <= most <= steps:
            raise ErasureError(
                f"{epochs} epochs need more than the {most} steps of max_steps, which an epoch"
                " takes alone. Give the trainer max_steps -1 with steps_per_concept of the data, or"
                " a larger max_steps without max_epochs."
            )
        if epochs < 0:
            return most
        return steps * epochs if most < 0 else min(steps * epochs, most)

    def val_dataloader(self) -> ImageLoader | list[ImageBatch]:
        """The plan with two seeds, the fewest with an interval; no image while fitting."""
        assert self.trainer is not None
        return [] if self.trainer.state.fn == "fit" else self._loader(self._plan(seeds=2))

    def test_dataloader(self) -> ImageLoader:
        """The whole plan."""
        return self._loader(self._plan(self.seeds))

    def _loader(self, requests: Sequence[ImageRequest]) -> ImageLoader:
        trainer = cast(Any, self.trainer)
        warn_of_cut(
            self._module.backbone, (each.prompt for each in requests), "prompts to generate"
        )
        ranks = trainer.global_rank, trainer.world_size
        return ImageLoader(requests, self.image_batch_size, self.image_size, *ranks)

    def _sampling(self) -> tuple[int, float]:
        """Steps and guidance."""
        steps, guidance = self._module.backbone.default_sampling
        return self.steps or steps, guidance if self.guidance is None else self.guidance

    def _check_sampling(self) -> None:
        """Raise before training if the model cannot generate the images by which it is measured."""
        self.vocabulary.require_labels(self.neighbours)
        self._module.backbone.latent_shape(self.image_size)
        self._module.backbone.sampler(self._sampling()[0], self.image_size)

    def _plan(self, seeds: int) -> list[ImageRequest]:
        module = self._module
        earlier = Vocabulary(module.backbone.world, module.earlier)
        rows = measured_prompts(self.vocabulary, self.others, self.neighbours, earlier)
        sampling = self._sampling()
        return [
            ImageRequest(prompt, seed, group, f"{prompt} #{seed}", answer, *sampling)
            for group, prompt, answer in rows
            for seed in range(seeds)
        ]

    def _requests(self, steps: int, guidance: float) -> list[ImageRequest]:
        """The CSV's rows, with defaults of a row's settings."""
        if self.prompts is None:
            raise ErasureError(
                "predict needs a CSV with the columns prompt and seed; found none. Pass it as"
                " prompts (command line: --data.prompts FILE)."
            )
        return read_prompts(Path(self.prompts), steps, guidance)

    def predict_dataloader(self) -> ImageLoader:
        """The CSV's rows.

        Raises:
            ErasureError: If there is no CSV, or a row of it cannot be read or generated.
        """
        loader = self._loader(self._requests(*self._sampling()))
        for request in {request.size: request for request in loader.requests}.values():
            try:  # every size is checked before an image is generated
                self._module.backbone.latent_shape(request.size)
            except ErasureError as error:
                raise ErasureError(f"{self.prompts}, case {request.case}: {error}") from error
        return loader


def warn_of_cut(backbone: Backbone, prompts: Iterable[str], what: str) -> None:
    """Warn, on the first rank, if prompts are longer than the model reads.

    Args:
        backbone: The model.
        prompts: The prompts; each counts once.
        what: What they are, as the warning names them.
    """
    every = list(dict.fromkeys(prompts))
    if cut := backbone.too_long(every):
        rank_zero_warn(
            f"{backbone.name} reads only the beginning of {len(cut)} of {len(every)} {what}, which"
            f" have more tokens than its text encoder takes. The first: {cut[0]!r}"
        )
