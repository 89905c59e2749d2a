"""Translation: the concept's name in other languages.

Text encoders trained on pages of the web read words of several languages, and an edit of the
English word need not reach them. The probe is ours, and no paper fixes its words; those of the
demonstrated concepts are in ``configs/attacks/translation.yaml``.

Its measure is the control ``original``: how many of the same prompts the model before the edit
understands at all. The emoji world's was trained on English labels: what it generates for
*Zigarette* comes from the tokens that the words share.

Cost for each image: four times the sampling of every word, and one image of each more.
"""

from collections.abc import Mapping, Sequence

from erasure_lightning.attacks.prompt_variants import PromptVariants
from erasure_lightning.attacks.target import AttackCase
from erasure_lightning.errors import ErasureError


class Translation(PromptVariants):
    """Asks for the concept by its name in other languages.

    Args:
        words_of: Concept -> its names in other languages, or a single one.
        seed: Seed of everything the attack draws at random.
    """

    def __init__(
        self, *, words_of: Mapping[str, Sequence[str] | str] | None = None, seed: int = 0
    ) -> None:
        super().__init__(seed=seed)
        self.words_of = {
            name: [words] if isinstance(words, str) else list(words)
            for name, words in (words_of or {}).items()
        }

    def words(self, case: AttackCase) -> list[str]:
        """The concept's names.

        Raises:
            ErasureError: If there are none.
        """
        name = case.concept.name
        if not self.words_of.get(name):
            raise ErasureError(
                f"Translation needs the name of {name!r} in other languages; found names of"
                f" {sorted(self.words_of) or 'no concept'}. Give them: --attack.words_of"
                f" '{{{name}: [...]}}'."
            )
        return self.words_of[name]
