"""Pictures to draw: one by one, in batches, shared among ranks, and out of a user's file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from erasure_lightning.checks import MAX_SEED
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.csv_table import CsvRow, read_table
from erasure_lightning.files.text_files import read_text


class ImageRequest(NamedTuple):
    """One picture to draw.

    Args:
        prompt: Its words.
        seed: Of its starting noise.
        group: Why it is drawn: ``efficacy``, ``generality``, ``specificity``, ``neighbours`` or
            ``prompts``.
        case: Its name; the file name of ``predict``.
        answer: The label it should be recognised as; of a prompt for a style that is erased, the
            thing it is put on; empty where there is none.
        steps: Sampling steps.
        guidance: Scale of classifier-free guidance.
        size: Height and width in pixels, one number where they are equal; the sheet's where
            ``None``.
    """

    prompt: str
    seed: int
    group: str
    case: str
    answer: str
    steps: int
    guidance: float
    size: int | tuple[int, int] | None = None


class ImageBatch(NamedTuple):
    """A batch of shots with equal steps, guidance and size.

    Args:
        shots: The pictures to draw.
        size: Height and width in pixels, one number where they are equal; the model's own where
            ``None``.
    """

    shots: list[ImageRequest]
    size: int | tuple[int, int] | None

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


class ImageLoader:
    """The batches of pictures one rank draws; a loader of its own, since Lightning would take a
    list for many loaders.

    Pictures of equal settings are drawn together, wherever they stand. Several ranks keep step:
    each has as many batches, of as many sampling steps each, as every other. Where equal settings
    are fewer than ranks, some draw a picture that another rank draws too.

    Args:
        shots: All pictures.
        count: The most to draw side by side.
        size: Height and width in pixels of shots that do not say theirs.
        rank: Which of the ``ranks`` this is; ranks take turns with the batches.
        ranks: How many share the work.

    Raises:
        ErasureError: If there are fewer pictures than ranks.
    """

    def __init__(
        self,
        shots: Sequence[ImageRequest],
        count: int,
        size: int | None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if len(shots) < ranks:
            raise ErasureError(
                f"{ranks} processes need a picture each to draw; found {len(shots)}. Use fewer"
                " devices."
            )
        equal: dict[tuple[object, ...], list[ImageRequest]] = {}
        for shot in shots:
            equal.setdefault((shot.steps, shot.guidance, shot.size or size), []).append(shot)
        batches = [
            ImageBatch(part, part[0].size or size)
            for run in equal.values()
            for part in _parts(run, count, ranks)
        ]
        self.shots = list(shots)
        self.batches = batches[rank::ranks]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ImageBatch]:
        return iter(self.batches)


def _parts(run: list[ImageRequest], count: int, ranks: int) -> list[list[ImageRequest]]:
    """A run in parts of at most ``count``, as many for each rank, and of several ranks as even as
    can be.
    """
    if ranks == 1:
        return [run[i : i + count] for i in range(0, len(run), count)]
    parts = ranks * -(-len(run) // (count * ranks))
    cuts = [i * len(run) // parts for i in range(parts + 1)]
    return [run[a:b] or run[-1:] for a, b in pairwise(cuts)]


class PromptColumns(NamedTuple):
    """How a published prompt file calls what is read of it.

    Args:
        prompt: Column of the words.
        seed: Columns of the seed, the first that is there; none where the list has no seeds, and
            rows are counted.
    """

    prompt: str
    seed: tuple[str, ...]


#: In the order in which they are looked for: MMA-Diffusion's benchmark (its adv_prompt beside
#: target_prompt and clean_prompt), Ring-A-Bell's nudity list as RECE and SAFREE ship it, I2P with
#: its descendants, among them Ring-A-Bell's own lists: evaluation_seed (ESD, UnlearnDiffAtk), or
#: I2P's sd_seed; and SPEED's text and seed.
PUBLISHED_COLUMNS = (
    PromptColumns("adv_prompt", ()),
    PromptColumns("sensitive prompt", ()),
    PromptColumns("prompt", ("evaluation_seed", "sd_seed", "seed")),
    PromptColumns("text", ("evaluation_seed", "seed")),
)

#: Columns of the settings, the first that is there; what is left empty there takes its default.
_GUIDANCE = ("guidance", "evaluation_guidance", "sd_guidance_scale", "guidance_scale")
_HEIGHT, _WIDTH = ("height", "sd_image_height"), ("width", "sd_image_width")
_CASE, _STEPS = ("case_number",), ("steps",)

_KNOWN = {column.prompt for column in PUBLISHED_COLUMNS} | {
    seed for column in PUBLISHED_COLUMNS for seed in column.seed
}
_KNOWN |= {*_GUIDANCE, *_HEIGHT, *_WIDTH, *_CASE, *_STEPS}

#: More than any sampler takes, and than any model draws.
_MOST_STEPS, _MOST_PIXELS = 1000, 2**14


def read_prompts(path: Path, steps: int, guidance: float) -> list[ImageRequest]:
    """Rows of a prompt file in the columns of I2P, Ring-A-Bell, MMA-Diffusion or SPEED
    (`PUBLISHED_COLUMNS`).

    A picture is called by its ``case_number``, else by the number of its row, from 0; so is its
    seed where a list has none. Guidance, steps, height and width are those of its row, where it has
    some.

    Raises:
        ErasureError: If the file is missing or empty, a column is missing, a number is none or out
            of range, or a case stands twice.
    """
    if not path.is_file():
        raise ErasureError(f"predict needs a CSV of prompts; found no file {path}.")
    table = read_table(path, read_text(path), _KNOWN)
    columns = _columns(path, table.columns)
    if not table.rows:
        raise ErasureError(f"{path} needs at least one row of prompts; found none.")
    shots = [_shot(row, number, columns, steps, guidance) for number, row in enumerate(table.rows)]
    cases = [s.case for s in shots]
    if twice := next((c for c, times in Counter(cases).items() if times > 1), None):
        raise ErasureError(
            f"{path} needs each case_number once, since it names a picture; found {twice} more than"
            " once."
        )
    return shots


def _columns(path: Path, found: Sequence[str]) -> PromptColumns:
    """Which of the published files this is, with the columns that are there."""
    for known in PUBLISHED_COLUMNS:
        seed = tuple(name for name in known.seed if name in found)[:1]
        if known.prompt in found and (seed or not known.seed):
            return PromptColumns(known.prompt, seed)
    ways = (
        "prompt and evaluation_seed (I2P, Ring-A-Bell; or sd_seed, or seed), text and seed (SPEED),"
        " sensitive prompt (Ring-A-Bell) or adv_prompt (MMA-Diffusion)"
    )
    raise ErasureError(f"{path} needs the columns {ways}; found {', '.join(found) or 'none'}.")


def _shot(
    row: CsvRow, number: int, columns: PromptColumns, steps: int, guidance: float
) -> ImageRequest:
    case, own_steps, own_guidance = (_filled(row, names) for names in (_CASE, _STEPS, _GUIDANCE))
    return ImageRequest(
        row.cells[columns.prompt],
        row.whole(columns.seed[0], 0, MAX_SEED) if columns.seed else number,
        "prompts",
        str(row.whole(case, 0, MAX_SEED) if case else number),
        "",
        row.whole(own_steps, 1, _MOST_STEPS) if own_steps else steps,
        row.real(own_guidance) if own_guidance else guidance,
        _size(row),
    )


def _size(row: CsvRow) -> int | tuple[int, int] | None:
    """Height and width of a row's picture; one number where they are equal."""
    height, width = (_filled(row, names) for names in (_HEIGHT, _WIDTH))
    if bool(height) != bool(width):
        given = height or width
        raise ErasureError(
            f"{row.where}, column {given}: height and width go together; found one of them alone."
        )
    if not height:
        return None
    high, wide = (row.whole(name, 1, _MOST_PIXELS) for name in (height, width))
    return high if high == wide else (high, wide)


def _filled(row: CsvRow, names: Sequence[str]) -> str:
    """The first of some columns that is there and is not empty in this row; empty if none is."""
    return next((name for name in names if row.cells.get(name, "").strip()), "")
