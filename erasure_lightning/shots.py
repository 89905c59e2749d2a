"""Pictures to draw: one by one, in batches, shared among ranks, and out of a user's file."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
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

    Several ranks keep step: each has as many batches, of as many sampling steps each, as every other. Where equal
    settings are fewer than ranks, some draw a picture that another rank draws too.

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
        runs = [list(run) for _, run in groupby(shots, key=lambda s: (s.steps, s.guidance))]
        batches = [Shots(part, size) for run in runs for part in _parts(run, count, ranks)]
        self.batches = batches[rank::ranks]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Shots]:
        return iter(self.batches)


def _parts(run: list[Shot], count: int, ranks: int) -> list[list[Shot]]:
    """A run in parts of at most ``count``, as many for each rank, and of several ranks as even as can be."""
    if ranks == 1:
        return [run[i : i + count] for i in range(0, len(run), count)]
    parts = ranks * -(-len(run) // (count * ranks))
    cuts = [i * len(run) // parts for i in range(parts + 1)]
    return [run[a:b] or run[-1:] for a, b in pairwise(cuts)]


class Columns(NamedTuple):
    """How a published prompt file calls what is read of it.

    Args:
        prompt: Column of the words.
        seed: Columns of the seed, the first that is there; none where the list has no seeds, and rows are counted.
        guidance: Columns of the guidance scale, of which none need be there.
    """

    prompt: str
    seed: tuple[str, ...]
    guidance: tuple[str, ...]


#: In the order in which they are looked for: MMA-Diffusion's benchmark (its adv_prompt beside target_prompt and
#: clean_prompt), Ring-A-Bell's nudity list as RECE and SAFREE ship it, and I2P with its descendants, among them
#: Ring-A-Bell's own lists: evaluation_seed and evaluation_guidance (ESD, UnlearnDiffAtk), or I2P's sd_seed.
PUBLISHED = (
    Columns("adv_prompt", (), ()),
    Columns("sensitive prompt", (), ()),
    Columns("prompt", ("evaluation_seed", "sd_seed"), ("guidance", "evaluation_guidance", "sd_guidance_scale")),
)


def read_prompts(path: Path, steps: int, guidance: float) -> list[Shot]:
    """Rows of a prompt file in the columns of I2P, Ring-A-Bell or MMA-Diffusion (`PUBLISHED`).

    A picture is called by its ``case_number``, else by the number of its row, from 0; so is its seed where a list has
    none.

    Raises:
        ErasureError: If the file is missing or empty, a column is missing, a number is none, or a case stands twice.
    """
    if not path.is_file():
        raise ErasureError(f"predict needs a CSV of prompts; found no file {path}.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns, rows = _columns(path, reader.fieldnames or []), list(reader)
    if not rows:
        raise ErasureError(f"{path} needs at least one row of prompts; found none.")
    shots = [_row(path, number, row, columns, steps, guidance) for number, row in enumerate(rows)]
    cases = [s.case for s in shots]
    if twice := next((c for c, times in Counter(cases).items() if times > 1), None):
        raise ErasureError(
            f"{path} needs each case_number once, since it names a picture; found {twice} more than once."
        )
    return shots


def _columns(path: Path, found: Sequence[str]) -> Columns:
    """Which of the published files this is, with the columns that are there."""
    for known in PUBLISHED:
        seed = tuple(name for name in known.seed if name in found)[:1]
        if known.prompt in found and (seed or not known.seed):
            return Columns(known.prompt, seed, tuple(name for name in known.guidance if name in found)[:1])
    ways = "prompt and evaluation_seed (I2P, Ring-A-Bell), sensitive prompt (Ring-A-Bell) or adv_prompt (MMA-Diffusion)"
    raise ErasureError(f"{path} needs the columns {ways}; found {', '.join(found) or 'none'}.")


def _row(path: Path, number: int, row: dict[str, str], columns: Columns, steps: int, guidance: float) -> Shot:
    try:
        seed = int(row[columns.seed[0]]) if columns.seed else number
        case = str(int(row.get("case_number") or number))
        steps = int(row.get("steps") or steps)
        guidance = float(next((row[name] for name in columns.guidance if row[name]), guidance))
    except (TypeError, ValueError) as error:
        raise ErasureError(f"{path}, line {number + 2}: {error}. Seeds, cases and steps are whole numbers.") from error
    return Shot(row[columns.prompt], seed, "prompts", case, "", steps, guidance)
