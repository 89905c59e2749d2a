"""Prompts: the concepts' sentences to train on, and the pictures to draw when an edit is measured or used."""

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from lightning import LightningDataModule

from erasure_lightning.concepts import Batch, Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.functional import mix
from erasure_lightning.vocabulary import Vocabulary, chosen

T = TypeVar("T")


class Shot(NamedTuple):
    """One picture to draw.

    Args:
        prompt: Its words.
        seed: Of its starting noise.
        group: Why it is drawn: ``efficacy``, ``generality``, ``specificity``, ``neighbours`` or ``prompts``.
        case: Its name; the file name of ``predict``.
        answer: The label it should be recognised as; of a prompt for a style that is erased, the thing it is put on;
            empty where there is none.
        steps: Sampling steps.
        guidance: Scale of classifier-free guidance.
    """

    prompt: str
    seed: int
    group: str
    case: str
    answer: str
    steps: int
    guidance: float


class Shots(NamedTuple):
    """A batch of shots with equal steps and guidance.

    Args:
        shots: The pictures to draw.
        size: Height and width in pixels; the model's own where ``None``.
    """

    shots: list[Shot]
    size: int | None

    @property
    def prompts(self) -> list[str]:
        """Their words."""
        return [s.prompt for s in self.shots]

    @property
    def seeds(self) -> list[int]:
        """Their seeds."""
        return [s.seed for s in self.shots]

    @property
    def steps(self) -> int:
        """Their sampling steps."""
        return self.shots[0].steps

    @property
    def guidance(self) -> float:
        """Their guidance scale."""
        return self.shots[0].guidance


class Sheet:
    """The batches of pictures one rank draws; a loader of its own, since Lightning would take a list for many loaders.

    Args:
        shots: All pictures.
        count: The most to draw side by side.
        size: Height and width in pixels.
        rank: Which of the ``ranks`` this is; ranks take turns with the batches.
        ranks: How many share the work.

    Raises:
        ErasureError: If there are fewer pictures than ranks.
    """

    def __init__(self, shots: Sequence[Shot], count: int, size: int | None, rank: int = 0, ranks: int = 1) -> None:
        if len(shots) < ranks:
            raise ErasureError(f"{ranks} processes need a picture each to draw; found {len(shots)}. Use fewer devices.")
        count = min(count, len(shots) // ranks)  # rounded down, or nine pictures leave the last of four ranks without
        runs = [list(run) for _, run in groupby(shots, key=lambda s: (s.steps, s.guidance))]
        batches = [Shots(run[i : i + count], size) for run in runs for i in range(0, len(run), count)]
        self.batches = batches[rank::ranks]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Shots]:
        return iter(self.batches)


class Draws(Generic[T]):
    """Batches that are a function of their number, so that a resumed run goes on where the killed one stopped.

    Lightning saves and restores anything that has ``state_dict`` and ``load_state_dict``.

    Args:
        draw: Makes the batch of a number.
        length: How many there are.
    """

    def __init__(self, draw: Callable[[int], T], length: int) -> None:
        self.draw = draw
        self.length = length
        self._given = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[T]:
        while self._given < self.length:
            self._given += 1
            yield self.draw(self._given - 1)
        self._given = 0

    def state_dict(self) -> dict[str, int]:
        """How many batches were given."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind them."""
        self._given = state["given"]


class PromptData(LightningDataModule):
    """Sentences for training, and the plan of pictures by which an edit is measured.

    Args:
        batch_size: Concept prompts a training step (on each rank), at least 1.
        templates: Sentences with ``{}`` for the concept (and ``{thing}`` for something kept, in those of a style); the
            concepts' own by default.
        seeds: Seeds each measured prompt is drawn with, at least 2 so that there is an interval.
        others: How many of the other labels are drawn, spread over the vocabulary.
        neighbours: Things close to the concept, measured beside it.
        steps: Sampling steps; the world's by default, else 50.
        guidance: Scale of classifier-free guidance; the world's by default, else 7.5.
        size: Height and width in pixels; the model's own by default.
        draw_size: Pictures drawn side by side.
        prompts: A CSV for ``predict`` with the columns of I2P: ``prompt``, ``evaluation_seed``, ``case_number``, and
            optionally ``guidance`` and ``steps``.

    Raises:
        ErasureError: If a number is out of range, or the CSV is missing, empty or malformed.
    """

    def __init__(
        self,
        batch_size: int = 4,
        templates: list[str] | None = None,
        seeds: int = 3,
        others: int = 54,
        neighbours: list[str] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | None = None,
        draw_size: int = 32,
        prompts: str | None = None,
    ) -> None:
        super().__init__()
        least = {"batch_size": (batch_size, 1), "seeds": (seeds, 2), "others": (others, 1), "draw_size": (draw_size, 1)}
        for name, (value, bound) in least.items():
            if value < bound:
                raise ErasureError(f"PromptData needs {name} of at least {bound}; found {value}.")
        if bad := [t for t in templates or () if "{}" not in t]:
            raise ErasureError(f"PromptData needs {{}} in every template for the concept's words; found {bad[0]!r}.")
        self.batch_size = batch_size
        self.templates = templates
        self.seeds = seeds
        self.others = others
        self.neighbours = neighbours or []
        self.steps = steps
        self.guidance = guidance
        self.size = size
        self.draw_size = draw_size
        self.prompts = prompts

    @property
    def _module(self) -> Any:
        assert self.trainer is not None  # Lightning attaches it before any hook
        return self.trainer.lightning_module

    @property
    def vocabulary(self) -> Vocabulary:
        """What the model draws, and what of it is erased."""
        return Vocabulary(self._module.backbone.world, self._module.concepts)

    def _default(self, mine: Any, name: str, otherwise: Any) -> Any:
        world = self._module.backbone.world
        return mine if mine is not None else getattr(world, name) if world else otherwise

    def train_dataloader(self) -> Draws[Batch]:
        """Concept prompts, a function of seed, rank and step."""
        trainer = self.trainer
        assert trainer is not None
        self._others = self.vocabulary.others
        steps = trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps > 0 else 1000
        return Draws(self._batch, steps)

    def _batch(self, number: int) -> Batch:
        module = self._module
        generator = torch.Generator().manual_seed(mix(module.seed, module.global_rank, number, 1))
        chosen = [self._turn(number * self.batch_size + i) for i in range(self.batch_size)]
        return Batch(
            [self._template(c, generator) for c in chosen], [c.name for c in chosen], [c.anchor for c in chosen]
        )

    def _turn(self, place: int) -> Concept:
        """Concepts take turns in an order that is drawn anew each round, so that none waits long."""
        module = self._module
        turn, concept = divmod(place, len(module.concepts))
        generator = torch.Generator().manual_seed(mix(module.seed, module.global_rank, turn, 2))
        return cast(Concept, module.concepts[int(torch.randperm(len(module.concepts), generator=generator)[concept])])

    def _template(self, concept: Concept, generator: torch.Generator) -> str:
        template = pick(self.templates or concept.templates, generator)
        return template.replace("{thing}", pick(self._others, generator))

    def val_dataloader(self) -> Sheet | list[Shots]:
        """The smallest plan with an interval, two seeds; nothing while fitting, which is measured at its end."""
        assert self.trainer is not None
        return [] if self.trainer.state.fn == "fit" else self._sheet(self._plan(seeds=2))

    def test_dataloader(self) -> Sheet:
        """The whole plan."""
        return self._sheet(self._plan(self.seeds))

    def _sheet(self, shots: Sequence[Shot]) -> Sheet:
        assert self.trainer is not None
        return Sheet(shots, self.draw_size, self.size, self.trainer.global_rank, self.trainer.world_size)

    def _plan(self, seeds: int) -> list[Shot]:
        rows = plan(self.vocabulary, self.others, self.neighbours)
        steps, guidance = self._default(self.steps, "steps", 50), self._default(self.guidance, "guidance", 7.5)
        return [
            Shot(prompt, seed, group, f"{prompt} #{seed}", answer, steps, guidance)
            for group, prompt, answer in rows
            for seed in range(seeds)
        ]

    def predict_dataloader(self) -> Sheet:
        """The CSV's rows."""
        if self.prompts is None:
            raise ErasureError(
                "predict needs a CSV of prompts; give --data.prompts FILE (prompt, evaluation_seed, case_number)."
            )
        steps, guidance = self._default(self.steps, "steps", 50), self._default(self.guidance, "guidance", 7.5)
        return self._sheet(read_prompts(Path(self.prompts), steps, guidance))


def pick(items: Sequence[T], generator: torch.Generator) -> T:
    """One of the items, all equally likely."""
    return items[int(torch.randint(len(items), (), generator=generator))]


def plan(vocabulary: Vocabulary, others: int, neighbours: Sequence[str]) -> list[tuple[str, str, str]]:
    """Group, prompt and expected label of every measured prompt, in the protocol of the emoji world (BARS.md)."""
    captions = vocabulary.captions
    kept = chosen(vocabulary.others, others)
    rows = [("efficacy", text, thing) for text, thing in vocabulary.concept_prompts()]
    rows += [("generality", text, thing) for text, thing in vocabulary.domain_prompts()]
    rows += [("neighbours", captions[1].format(w), w) for w in neighbours]
    return rows + [("specificity", captions[1].format(label), label) for label in kept]


def read_prompts(path: Path, steps: int, guidance: float) -> list[Shot]:
    """Rows of a prompt file in I2P's columns.

    Raises:
        ErasureError: If the file is missing or empty, a column is missing, a number is none, or a case stands twice.
    """
    if not path.is_file():
        raise ErasureError(f"predict needs a CSV of prompts; found no file {path}.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    columns = reader.fieldnames or []
    if missing := [c for c in ("prompt", "evaluation_seed", "case_number") if c not in columns]:
        raise ErasureError(
            f"{path} needs the columns prompt, evaluation_seed, case_number; {', '.join(missing)} missing."
        )
    if not rows:
        raise ErasureError(f"{path} needs at least one row of prompts; found none.")
    shots = [_row(path, line, row, steps, guidance) for line, row in enumerate(rows, start=2)]
    cases = [s.case for s in shots]
    if twice := next((c for c in cases if cases.count(c) > 1), None):
        raise ErasureError(
            f"{path} needs each case_number once, since it names a picture; found {twice} more than once."
        )
    return shots


def _row(path: Path, line: int, row: dict[str, str], steps: int, guidance: float) -> Shot:
    try:
        seed, case = int(row["evaluation_seed"]), str(int(row["case_number"]))
        steps, guidance = int(row.get("steps") or steps), float(row.get("guidance") or guidance)
    except (TypeError, ValueError) as error:
        raise ErasureError(f"{path}, line {line}: {error}. Seeds, cases and steps are whole numbers.") from error
    return Shot(row["prompt"], seed, "prompts", case, "", steps, guidance)
