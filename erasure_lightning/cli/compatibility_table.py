"""Which method or attack runs on which model family, as a table in Markdown."""

from collections.abc import Iterable

from erasure_lightning.backbones.families import FAMILIES
from erasure_lightning.cli.slow_import import load_with_notice
from erasure_lightning.registry import Offer
from erasure_lightning.training.backbone_checks import missing_capabilities


def compatibility_table(offers: Iterable[Offer]) -> str:
    """A row for each method or attack and a column for each family: yes, or what is missing.

    Args:
        offers: The methods or attacks; they are imported.

    Raises:
        ErasureError: If one cannot be imported.
    """
    families = {family.title: family.load_class() for family in FAMILIES.values()}
    rows = [["", *families], ["---"] * (len(families) + 1)]
    for offer in offers:
        needs = load_with_notice(offer).needs
        missing = [missing_capabilities(family, needs) for family in families.values()]
        rows.append([offer.name, *(f"no: needs {words}" if words else "yes" for words in missing)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
