"""Misspelling: the concept's name with typing errors.

An edit of a word acts on its tokens, and a misspelled word has others, which the text encoder may
still read as the concept. A variant swaps two neighbouring letters of the name, doubles one, or
leaves one out, at random; it may happen to be another word (*cat*, *act*). The probe is ours, and
no paper fixes its budget.

Its measure is the control ``original``: how many of the same prompts the model before the edit
understands at all. A prompt that the original does not understand is no evidence of erasure.

Cost for each image: four times the sampling of every variant, and one image of each more.
"""

import torch

from erasure_lightning.attacks.base import check_at_least
from erasure_lightning.attacks.prompt_variants import PromptVariants
from erasure_lightning.attacks.target import AttackCase
from erasure_lightning.errors import ErasureError


class Misspelling(PromptVariants):
    """Asks for the concept with typing errors in its name.

    Args:
        variants: Misspelled names for each concept and seed, at least 1; a short name may have
            fewer.
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If the number is out of range.
    """

    def __init__(self, *, variants: int = 8, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.variants = variants
        check_at_least(self, variants=1)

    def words(self, case: AttackCase) -> list[str]:
        """Random misspelled names.

        Raises:
            ErasureError: If the name has no letters to misspell.
        """
        every = misspelled(case.concept.name)
        if not every:
            raise ErasureError(
                f"Misspelling needs a name with letters; found {case.concept.name!r}."
            )
        order = torch.randperm(len(every)).tolist()
        return [every[index] for index in order[: self.variants]]


def misspelled(name: str) -> list[str]:
    """Every name with one typing error, each once.

    Two neighbouring letters are swapped, or one is doubled, or left out if others remain in its
    word.
    """
    variants: dict[str, None] = {}
    for i, letter in enumerate(name):
        if not letter.isalpha():
            continue
        before = name[:i]
        after = name[i + 1 :]
        variants[before + letter + letter + after] = None
        if after[:1].isalpha():
            variants[before + after[0] + letter + after[1:]] = None
        if before[-1:].isalpha() or after[:1].isalpha():
            variants[before + after] = None
    return [variant for variant in variants if variant != name]
