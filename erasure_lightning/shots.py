"""Pictures to draw: one by one, in batches, shared among ranks, and out of a user's file."""

import csv
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from erasure_lightning.errors import ErasureError


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
