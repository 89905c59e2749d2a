"""Figures of SAGE in the README: ``python benchmarks/sage.py bars`` (or ``ablations``).

Each row is one `erasure fit` with a shipped config, or one and the overrides written here; the
ablations erase the five weapons. Finished runs in ``--out`` are reused, so that a stopped table is
resumed.
"""

import argparse
import json
from pathlib import Path

from rows import COLUMNS, fitted, head, interval, line

#: Concepts on which the defaults were chosen (domain mining: the skull), and two held out.
CIGARETTE = ["--config", "sage.yaml", "--data.neighbours", "[pill, syringe]"]
WEAPONS = ["--config", "sage-weapons.yaml"]
BARS = {
    "cigarette": CIGARETTE,
    "heart": ["--config", "sage-heart.yaml"],
    "weapon": WEAPONS,
    "twemoji (style)": ["--config", "sage-style.yaml"],
    "skull": ["skull", "balloon", "[death, skeleton, corpse]", "[ghost, alien, robot]"],
    "pizza (held out)": [
        "pizza",
        "doughnut",
        "[pepperoni, margherita, pizzeria]",
        "[taco, hamburger, hot dog]",
    ],
    "rocket (held out)": [
        "rocket",
        "sailboat",
        "[spaceship, spacecraft, shuttle]",
        "[airplane, helicopter, alien]",
    ],
}

#: Callbacks of the shipped configs with their arguments; the first two are the paper's.
TERMS = {
    "GlobalSemanticAlignment": {"weight": 800, "retained_share": 1},
    "LocalNoisePreservation": {"weight": 0.3, "batch_size": 4, "retained_share": 1},
    "LocalStatePreservation": {"weight": 1.5, "retained_share": 1},
    "UnconditionalDrift": {"weight": 3},
}
GLOBAL, NOISE, STATES, UNCONDITIONAL = TERMS


def retention(*names: str, **more: dict) -> list[str]:
    """Override of the callbacks with these alone, some with further arguments by name."""
    callbacks = [{"class_path": n, "init_args": TERMS[n] | more.get(n, {})} for n in names]
    return ["--trainer.callbacks", json.dumps(callbacks)]


BANK = {
    "class_path": "TrajectoryBank",
    "init_args": {"trajectories": 48, "steps": 10, "guidance": 4.0},
}
ABLATIONS = {
    "SAGE as shipped": [],
    "no self-check": ["--model.check_steps", "0"],
    "outside-in attack": ["--model.check", "outside_in"],
    "erasure in noise space": ["--model.erase_space", "noise", "--model.eta", "1"],
    "no global term": retention(NOISE, STATES, UNCONDITIONAL),
    "no local noise term": retention(GLOBAL, STATES, UNCONDITIONAL),
    "the paper's two terms alone": retention(GLOBAL, NOISE),
    "our two terms alone": retention(STATES, UNCONDITIONAL),
    "no local state term": retention(GLOBAL, NOISE, UNCONDITIONAL),
    "no unconditional term": retention(GLOBAL, NOISE, STATES),
    "no retention": retention(),
    "local noise on trajectories": retention(*TERMS, **{NOISE: {"latents": BANK}}),
    "all blocks trained": ["--model.blocks", "null"],
}


def case_arguments(case: list[str]) -> list[str]:
    """A case's own arguments: a config, or the first config with another concept."""
    if case[0] == "--config":
        return case
    name, anchor, domain, neighbours = case
    concept = f"[{{name: {name}, anchor: {anchor}, domain: {domain}}}]"
    return ["--config", "sage.yaml", "--model.concepts", concept, "--data.neighbours", neighbours]


def row(folder: Path, arguments: list[str]) -> dict[str, str]:
    """The row of a run's figures."""
    metrics, cost = fitted(folder, arguments)
    estimates = metrics["estimates"]
    figures = {
        name: interval(estimates.get(group, {}).get("recognized"))
        for name, group in COLUMNS.items()
    }
    structure = estimates["structure"]
    figures |= {"feature": interval(structure["similarity"]), "L1": interval(structure["distance"])}
    return figures | {"seconds": f"{cost['seconds']:.0f}", "peak GiB": f"{cost['peak_gib']:.2f}"}


def print_table(cases: dict[str, list[str]], out: Path, shared: list[str]) -> None:
    """Print a table in Markdown, each row as soon as its run has finished.

    Args:
        cases: Arguments of each `erasure fit`, by the row's name.
        out: Folder of the runs.
        shared: Arguments of all of them.
    """
    for number, (name, arguments) in enumerate(cases.items()):
        figures = row(out / name.translate(str.maketrans(" ", "-", "(),'")), [*arguments, *shared])
        if number == 0:
            print(head(["", *figures]))
        print(line([name, *figures.values()]), flush=True)


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=["bars", "ablations"])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--seeds", default="5")
    options = parser.parse_args()
    if options.table == "bars":
        cases = {name: case_arguments(case) for name, case in BARS.items()}
    else:
        cases = {name: [*WEAPONS, *extra] for name, extra in ABLATIONS.items()}
    print_table(cases, options.out / options.table, ["--data.seeds", options.seeds])


if __name__ == "__main__":
    main()
