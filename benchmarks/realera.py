"""Ablations of RealEra: ``python benchmarks/realera.py cigarette`` (heart, weapon).

Each row is one `erasure fit` with a shipped config and the overrides written here. Finished
runs in ``--out`` are reused, so that a stopped table is resumed.
"""

import argparse
from pathlib import Path

from sage import print_table

BOTH, STAGE_A = ["--config", "realera.yaml"], ["--config", "realera-closed-form.yaml"]
NO_CALLBACK, NO_NEIGHBOURS = ["--trainer.callbacks", "null"], ["--model.neighbours", "0"]
STAGE_B = [*BOTH, "--model.closed_form", "false"]
CASES = {
    "RealEra as shipped": BOTH,
    "no neighbours": [*BOTH, *NO_NEIGHBOURS],
    "no beyond term": [*BOTH, "--model.beyond", "0"],
    "the paper's terms alone (no callback)": [*BOTH, *NO_CALLBACK],
    "no neighbours, no callback": [*BOTH, *NO_NEIGHBOURS, *NO_CALLBACK],
    "stage B alone": STAGE_B,
    "stage B alone, no callback": [*STAGE_B, *NO_CALLBACK],
    "stage A as shipped": STAGE_A,
    "stage A, no neighbours": [*STAGE_A, *NO_NEIGHBOURS],
    "stage A, no beyond term": [*STAGE_A, "--model.beyond", "0"],
    "stage A, neither": [*STAGE_A, *NO_NEIGHBOURS, "--model.beyond", "0"],
    "stage A, no callback": [*STAGE_A, *NO_CALLBACK],
}


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concept", choices=["cigarette", "heart", "weapon"])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--seeds", default="5")
    parser.add_argument("--rows", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    shared = ["--model.concepts", f"{options.concept}.yaml", "--data.seeds", options.seeds]
    cases = {name: CASES[name] for name in options.rows}
    print_table(cases, options.out / f"realera-{options.concept}", shared)


if __name__ == "__main__":
    main()
