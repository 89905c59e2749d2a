"""Images to generate: requests, the plan of a measurement, batches by rank, and prompt files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from erasure_lightning.checks import MAX_SEED
from erasure_lightning.concepts.vocabulary import Vocabulary, random_subset
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.csv_table import CsvRow, read_table
from erasure_lightning.files.text_files import read_text


class ImageRequest(NamedTuple):
    """An image to generate.

    Args:
        prompt: The prompt.
        seed: Seed of the initial noise.
        group: Its purpose: ``efficacy``, ``generality``, ``earlier``, ``specificity``,
            ``neighbours`` or ``prompts``.
        case: Its name, the file name in ``predict``.
        answer: The label that it should be recognised as; for an erased style, the thing in that
            style; empty for none.
        steps: Sampling steps.
        guidance: Scale of classifier-free guidance.
        size: Height and width in pixels, one number if they are equal; None for the loader's.
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
    """A batch of requests with equal steps, guidance and size.

    Args:
        requests: The images to generate.
        size: Height and width in pixels, one number if they are equal; None for the model's own.
        is_repeated: Whether they are another rank's, generated again so that ranks keep step.
    """

    requests: list[ImageRequest]
    size: int | tuple[int, int] | None
    is_repeated: bool = False

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        return [request.prompt for request in self.requests]

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return [request.seed for request in self.requests]

    @property
    def steps(self) -> int:
        """The sampling steps."""
        return self.requests[0].steps

    @property
    def guidance(self) -> float:
        """The guidance scale."""
        return self.requests[0].guidance


class ImageLoader:
    """The batches of images that one rank generates.

    Requests of equal settings are batched together. All ranks have the same number of batches, with
    the same sampling steps; where requests of equal settings are fewer than ranks, some ranks
    generate an image that another one generates too.

    Args:
        requests: All requests.
        count: Largest batch size.
        size: Height and width in pixels of requests without a size.
        rank: Number of this rank; batches are dealt out in turn.
        ranks: Number of ranks.

    Raises:
        ErasureError: If there are fewer requests than ranks.
    """

    def __init__(
        self,
        requests: Sequence[ImageRequest],
        count: int,
        size: int | None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if len(requests) < ranks:
            raise ErasureError(
                f"{ranks} processes need an image each to generate; found {len(requests)}. Use"
                " fewer devices."
            )
        self.requests = [request._replace(size=request.size or size) for request in requests]
        equal: dict[tuple[object, ...], list[ImageRequest]] = {}
        for request in self.requests:
            equal.setdefault((request.steps, request.guidance, request.size), []).append(request)
        batches = [
            ImageBatch(part or group[-1:], group[0].size, is_repeated=not part)
            for group in equal.values()
            for part in _parts(group, count, ranks)
        ]
        self.batches = batches[rank::ranks]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ImageBatch]:
        return iter(self.batches)


def _parts(group: list[ImageRequest], count: int, ranks: int) -> list[list[ImageRequest]]:
    """Parts of at most ``count`` requests, of similar size and equally many per rank.

    The last are empty where there are fewer requests than parts.
    """
    if ranks == 1:
        return [group[i : i + count] for i in range(0, len(group), count)]
    parts = ranks * -(-len(group) // (count * ranks))
    filled = min(parts, len(group))
    cuts = [i * len(group) // filled for i in range(filled + 1)]
    return [group[a:b] for a, b in pairwise(cuts)] + [[]] * (parts - filled)


def measured_prompts(
    vocabulary: Vocabulary,
    others: int,
    neighbours: Sequence[str],
    earlier: Vocabulary | None = None,
) -> list[tuple[str, str, str]]:
    """Group, prompt and expected label of every prompt of the measurement.

    Args:
        vocabulary: What the model generates, and what of it is erased.
        others: How many of the other labels are measured.
        neighbours: Labels close to the concept.
        earlier: The same model with the concepts of edits beneath, which are measured too.

    Raises:
        ErasureError: If the model's world does not know a neighbour.
    """
    vocabulary.require_labels(neighbours)
    caption = vocabulary.captions[1]
    rows = [("efficacy", text, label) for text, label in vocabulary.concept_prompts()]
    rows += [("generality", text, label) for text, label in vocabulary.domain_prompts()]
    rows += [("neighbours", caption.format(label), label) for label in neighbours]
    retained = vocabulary.others
    if earlier and earlier.concepts:
        rows += [("earlier", text, label) for text, label in earlier.concept_prompts()]
        retained = [label for label in retained if label in set(earlier.others)]
    retained = random_subset(retained, others)
    return rows + [("specificity", caption.format(label), label) for label in retained]


class PromptColumns(NamedTuple):
    """Columns of a published prompt file.

    Args:
        prompt: Column of the prompts.
        seed: Possible columns of the seed, in order of preference.
        numbered: Whether a file may have none of them; the seed is then the row's number.
    """

    prompt: str
    seed: tuple[str, ...]
    numbered: bool = False


#: Columns of seeds, in order of preference.
_SEEDS = ("evaluation_seed", "sd_seed", "seed")

#: Known files, in order of preference: MMA-Diffusion's benchmark (its adv_prompt beside
#: target_prompt and clean_prompt), Ring-A-Bell's nudity list as RECE and SAFREE ship it, I2P with
#: its descendants, among them Ring-A-Bell's own lists: evaluation_seed (ESD, UnlearnDiffAtk), or
#: I2P's sd_seed; and SPEED's text and seed.
_PUBLISHED_COLUMNS = (
    PromptColumns("adv_prompt", _SEEDS, numbered=True),
    PromptColumns("sensitive prompt", _SEEDS, numbered=True),
    PromptColumns("prompt", _SEEDS),
    PromptColumns("text", ("evaluation_seed", "seed")),
)

#: Possible columns of the settings, in order of preference; empty cells take the defaults.
_GUIDANCE = ("guidance", "evaluation_guidance", "sd_guidance_scale", "guidance_scale")
_HEIGHT = ("height", "sd_image_height")
_WIDTH = ("width", "sd_image_width")
_CASE = ("case_number",)
_STEPS = ("steps",)

_KNOWN = {column.prompt for column in _PUBLISHED_COLUMNS} | {
    seed for column in _PUBLISHED_COLUMNS for seed in column.seed
}
_KNOWN |= {*_GUIDANCE, *_HEIGHT, *_WIDTH, *_CASE, *_STEPS}

#: Upper bounds of all samplers and models.
_MOST_STEPS = 1000
_MOST_PIXELS = 2**14


def read_prompts(path: Path, steps: int, guidance: float) -> list[ImageRequest]:
    """Reads a prompt file with the columns of I2P, Ring-A-Bell, MMA-Diffusion or SPEED.

    An image's case is its ``case_number``, else the number of its row, from 0; so is its seed in a
    file without seeds. Guidance, steps, height and width are those of its row, if it has some.

    Args:
        path: The CSV file, with one of `_PUBLISHED_COLUMNS`.
        steps: Default sampling steps.
        guidance: Default guidance scale.

    Raises:
        ErasureError: If the file is missing or empty, a column is missing, a number is invalid or
            out of range, or a case occurs twice.
    """
    if not path.is_file():
        raise ErasureError(f"predict needs a CSV of prompts; found no file {path}.")
    table = read_table(path, read_text(path), _KNOWN)
    columns = _columns(path, table.columns)
    if not table.rows:
        raise ErasureError(f"{path} needs at least one row of prompts; found none.")
    requests = [
        _request(row, number, columns, steps, guidance) for number, row in enumerate(table.rows)
    ]
    counts = Counter(request.case for request in requests)
    if repeated := next((case for case, count in counts.items() if count > 1), None):
        raise ErasureError(
            f"{path} needs each case_number once, since it names an image; found {repeated} more"
            " than once."
        )
    return requests


def _columns(path: Path, columns: Sequence[str]) -> PromptColumns:
    """The known columns of a file, with its first column of seeds."""
    for known in _PUBLISHED_COLUMNS:
        seed = tuple(name for name in known.seed if name in columns)[:1]
        if known.prompt in columns and (seed or known.numbered):
            return PromptColumns(known.prompt, seed)
    ways = (
        "prompt and seed (I2P, Ring-A-Bell: or evaluation_seed, or sd_seed), text and seed (SPEED),"
        " sensitive prompt (Ring-A-Bell) or adv_prompt (MMA-Diffusion)"
    )
    raise ErasureError(f"{path} needs the columns {ways}; found {', '.join(columns) or 'none'}.")


def _request(
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
    """Height and width of a row's image; one number if they are equal."""
    height, width = (_filled(row, names) for names in (_HEIGHT, _WIDTH))
    if bool(height) != bool(width):
        column = height or width
        raise ErasureError(
            f"{row.where}, column {column}: height and width go together; found one of them alone."
        )
    if not height:
        return None
    size = (row.whole(height, 1, _MOST_PIXELS), row.whole(width, 1, _MOST_PIXELS))
    return size[0] if size[0] == size[1] else size


def _filled(row: CsvRow, names: Sequence[str]) -> str:
    """The first of some columns with a value in this row; empty if there is none."""
    return next((name for name in names if row.cells.get(name, "").strip()), "")
