"""Lists of prompts to retain: shipped ones by name, and text files."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from erasure_lightning.concepts.concept import Concept
from erasure_lightning.files.text_files import read_prompts_file
from erasure_lightning.files.words import mentioning

_FOLDER = Path(__file__).parent / "lists"

#: Names of the shipped lists: everyday things, painters of the past, people by their roles, and
#: captions of photos, about a hundred lines each, written for this package (CC0); and 20,840 words
#: of English, for methods that search a vocabulary.
PROMPT_LISTS: tuple[str, ...] = ("things", "artists", "roles", "captions", "english")


def is_shipped_list(name: str) -> bool:
    """Whether a name is that of a shipped list, and not of a file of the user's."""
    return name in PROMPT_LISTS and not Path(name).is_file()


def read_prompt_list(name: str, owner: str) -> list[str]:
    """The prompts of a text file or a shipped list, one a line; ``#`` begins a comment.

    Args:
        name: The file's path, or one of `PROMPT_LISTS`.
        owner: What needs it, for errors.

    Raises:
        ErasureError: If the file is missing or empty.
    """
    if not is_shipped_list(name):
        return read_prompts_file(name, owner, f"one of the lists {', '.join(PROMPT_LISTS)}, or ")
    return read_prompts_file(str(_FOLDER / f"{name}.txt"), owner)


def without_concepts(prompts: Iterable[str], concepts: Sequence[Concept]) -> list[str]:
    """Prompts in which no concept is named, nor a word of its domain, in singular or plural.

    Args:
        prompts: Any number.
        concepts: The concepts to erase.
    """
    names = (word for concept in concepts for word in (concept.name, *concept.domain))
    is_named = mentioning(names)
    return [prompt for prompt in prompts if not is_named(prompt)]
