"""What an edit of the text's entry reaches on FLUX, and one of deeper parts: ``reach.py``.

Each row is one `erasure fit` on the FLUX world, with the config named and the part of the model
that it trains; then `erasure attack --config concept-inversion.yaml`. *own*: prompts
that name the concept, recognised as it; *rephrased*: words of its domain that do not name it;
*inverted*: the embedding of a made-up word, learned in the edited model, restores it. *retain*
and *feature* as in ``benchmarks/methods.py``. Finished runs in ``--out`` are reused.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from methods import quality
from rows import fitted, head, line

from erasure_lightning.benchmark.pareto import PALETTE

BACKBONE = "emoji-world-flux"
NOISE = ("--model.erase_space", "noise")

#: Title -> config and options.
ROWS = {
    "UCE: entry, closed form": ("uce",),
    "ESD: entry": ("esd-flux", "--model.train", "entry", "--model.lr", "1e-3"),
    "SAGE: entry": ("sage", "--model.train", "text_entry", *NOISE, "--model.lr", "1e-3"),
    "ESD: keys and values of the text": ("esd-flux", "--model.train", "x-strict"),
    "ESD: joint attention": ("esd-flux",),
    "All but One: joint attention": ("all-but-one",),
    "SAGE: joint attention": (
        "sage",
        "--model.train",
        "joint_attention",
        *NOISE,
        "--model.lr",
        "1e-4",
    ),
    "SAGE: text encoders": ("sage",),
}
HEAD = ("edit", "own", "rephrased", "inverted", "retain", "feature", "trained")


def inverted(run: Path) -> float:
    """Share of images in which ConceptInversion restores the concept."""
    folder = run / "attacks" / "conceptinversion"
    if not (folder / "attack.json").exists():
        command = [sys.executable, "-m", "erasure_lightning", "attack", "--ckpt_path", str(run)]
        subprocess.run(
            [*command, "--config", "concept-inversion.yaml"], check=True, capture_output=True
        )
    outcome = json.loads((folder / "attack.json").read_text())
    return outcome["success"]["attacked"]["mean"]


def row(title: str, concept: str, out: Path) -> tuple[float, ...]:
    """Own, rephrased, inverted, retain, feature and trained parameters of one edit."""
    config, *options = ROWS[title]
    run = out / "-".join([*re.findall(r"\w+", title.lower()), concept])
    arguments = ["--config", f"{config}.yaml", "--model.backbone", BACKBONE]
    arguments += ["--model.concepts", f"{concept}.yaml", "--data.seeds", "3", *options]
    metrics, cost = fitted(run, [*arguments, "--data.originals", str(out / "originals")], 1)
    own, domain, retain, _, feature, _ = quality(metrics["estimates"])
    return own, domain, inverted(run), retain, feature, cost["trained_parameters"]


def plot(rows: dict[str, tuple[float, ...]], path: Path) -> None:
    """Plot the shares of images that show the concept, one group of bars for each edit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    names = list(rows)
    for offset, (label, colour) in enumerate(zip(HEAD[1:4], PALETTE, strict=False)):
        places = [i + 0.27 * (offset - 1) for i in range(len(names))]
        values = [rows[name][offset] for name in names]
        bars = axes.barh(places, values, 0.25, label=label, color=colour)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("share of images recognised as the erased concept")
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the table of one concept, and plot it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reach"))
    parser.add_argument("--concept", default="heart", help="name of a list in configs/concepts")
    parser.add_argument("--edits", nargs="+", choices=ROWS, default=list(ROWS), metavar="EDIT")
    parser.add_argument("--plot", type=Path, help="a PNG to write")
    options = parser.parse_args()
    rows = {title: row(title, options.concept, options.out) for title in options.edits}
    print(head(list(HEAD)))
    for title, (*shares, trained) in rows.items():
        print(line([title, *(f"{share:.3f}" for share in shares), f"{trained:,}"]))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
