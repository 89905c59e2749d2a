"""Writes the tables of docs/families.md anew: ``python benchmarks/compatibility.py``.

Which of this repository's methods and attacks runs on which model family, as their classes say; run
it whenever a family, a method or an attack is added. ``--check`` writes nothing: exit code 1 if the
tables there are others.
"""

import argparse
import re
import sys
from pathlib import Path

from erasure_lightning.attacks import ATTACKS
from erasure_lightning.cli.compatibility_table import compatibility_table
from erasure_lightning.methods import METHODS
from erasure_lightning.registry import ATTACK, METHOD, find_offer

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/families.md"


def tables() -> dict[str, str]:
    """The tables, by the names of their marks in the document."""
    return {
        "methods": compatibility_table(find_offer(METHOD, name) for name in METHODS),
        "attacks": compatibility_table(find_offer(ATTACK, name) for name in ATTACKS),
    }


def renewed(document: str) -> str:
    """A document with new tables between its marks, ``<!-- methods -->`` to ``<!-- end -->``."""
    for name, table in tables().items():
        mark = f"<!-- {name} -->\n"
        pattern = re.compile(f"(?<={re.escape(mark)}).*?(?=<!-- end -->)", re.DOTALL)
        document = pattern.sub(lambda _, table=table: f"\n{table}\n\n", document, count=1)
    return document


def main() -> None:
    """Writes the document, or compares it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="Compare, and write nothing.")
    check = parser.parse_args().check
    document = DOCUMENT.read_text(encoding="utf-8")
    if check:
        sys.exit(int(renewed(document) != document))
    DOCUMENT.write_text(renewed(document), encoding="utf-8")


if __name__ == "__main__":
    main()
