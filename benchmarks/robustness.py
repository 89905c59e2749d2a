"""Methods x attacks on the emoji world, in tables and a plot: ``python benchmarks/robustness.py``.

Each cell is one `erasure fit` with a shipped config (``esd-...``: of ESD with an adversary, or
without, twice the steps and a retention term) and one `erasure attack` for each attack with the
config of the same name; ``--tenfold`` also makes those by text with ten times the steps, and
``--backbone emoji-world-xl`` (or ``-flux``) measures on that world in place of the emoji world.
Finished runs and attacks in ``--out``, a folder for each world, are reused, so that a stopped table
is resumed; ``--finished`` prints what was measured. The figures are written to
``docs/robustness.json``, and from there the generated parts of ``docs/robustness.md`` and
``docs/choosing.md`` and the plot (``--pages``: these alone).
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rows import COLUMNS, fitted, head, line, mean

from erasure_lightning.api.configs import shipped_configs
from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.benchmark.pareto import PALETTE

DOCS = Path(__file__).parent.parent / "docs"
FIGURES = DOCS / "robustness.json"

#: The world of all methods; the others are measured with those that did best on it.
WORLD = "emoji-world"

#: Retention of ESD with an adversary, as STEREO's and RACE's configs have it.
_RETENTION = (
    "--trainer.callbacks+=LocalNoisePreservation",
    "--trainer.callbacks.weight=1.0",
    "--trainer.callbacks.batch_size=8",
    "--trainer.callbacks.retained_share=1",
)


def longer_esd(kind: str = "", *numbers: str) -> list[str]:
    """Arguments of ESD with twice the steps and retention, against a kind of adversary."""
    adversary = ["--model.adversary", kind, "--model.adversary.begin", "20"] if kind else []
    for name, value in (number.split("=") for number in numbers):
        adversary += [f"--model.adversary.{name}", value]
    return ["--config", "esd.yaml", "--data.steps_per_concept", "120", *adversary, *_RETENTION]


#: Names in text, and arguments of `erasure fit`.
METHODS = {
    "uce": ("UCE", ["--config", "uce.yaml"]),
    "esd": ("ESD", ["--config", "esd.yaml"]),
    "sage": ("SAGE", ["--config", "sage.yaml"]),
    "esd-inversion": (
        "ESD, adversary",
        longer_esd("InversionAdversary", "every=20", "words=4", "steps=40", "lr=0.05"),
    ),
    "race": ("RACE", ["--config", "race.yaml"]),
    "advunlearn": ("AdvUnlearn", ["--config", "advunlearn.yaml"]),
    "stereo": ("STEREO", ["--config", "stereo.yaml"]),
    "sage-robust": ("SAGE + STEREO", ["--config", "sage-robust.yaml"]),
}

#: ESD without an adversary and against each kind. Searches have as many evaluations with gradient,
#: and words one rate.
ABLATION = {
    "esd-longer": ("none", longer_esd()),
    "esd-word": ("`WordAdversary`", longer_esd("WordAdversary", "steps=4", "lr=0.05", "share=0.5")),
    "esd-prefix": (
        "`PrefixAdversary`",
        longer_esd("PrefixAdversary", "steps=4", "lr=0.05", "share=0.5"),
    ),
    "esd-state": (
        "`StateAdversary`",
        longer_esd("StateAdversary", "steps=4", "radius=0.5", "share=0.5"),
    ),
    "esd-inversion": ("`InversionAdversary`", METHODS["esd-inversion"][1]),
}

#: All rows that can be measured.
EVERY = METHODS | ABLATION


class AttackKind(NamedTuple):
    """An attack, and who can make it.

    Args:
        config: Config of ``erasure attack``.
        searches: What it varies.
        needs: What an attacker has to have.
        tenfold: Its arguments for ten times the steps; none where that is not measured.
    """

    config: str
    searches: str
    needs: str
    tenfold: tuple[str, ...] = ()


ATTACKS = {
    "RingABell": AttackKind(
        "ring-a-bell.yaml",
        "words close to the concept in a text encoder",
        "a place to type prompts, and the text encoder (a public one, unless the edit changes it)",
        ("--attack.generations", "600"),
    ),
    "P4D": AttackKind(
        "p4d.yaml",
        "words, by gradients of the edited model",
        "the weights before and after, once; then a place to type the words",
        ("--attack.steps", "600"),
    ),
    "UnlearnDiffAtk": AttackKind(
        "unlearn-diff-atk.yaml",
        "words before the prompt, by gradients of the edited model",
        "the weights and an image of the concept, once; then a place to type the words",
        ("--attack.steps", "80"),
    ),
    "ConceptInversion": AttackKind(
        "concept-inversion.yaml",
        "the embedding of a new word",
        "the weights and a few images, once; then a service that takes textual inversions",
        ("--attack.steps", "600"),
    ),
    "SoftEmbedding": AttackKind(
        "soft-embedding.yaml",
        "text states that the denoiser reads, past the text encoder",
        "the weights, a few images, and a program that generates from states in place of prompts",
    ),
}

#: Those that pass the text encoder, edited or not; their mean and maximum are plotted.
BY_TEXT = ("RingABell", "P4D", "UnlearnDiffAtk", "ConceptInversion")


def measured(method: str, concept: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Figures of a cell, whose missing runs and attacks are made; None if there is no run."""
    folder = options.out / f"{method}-{concept}"
    for part in ("sage", "stereo") if method == "sage-robust" else ():
        own, link = options.out / f"{part}-{concept}", folder / "parts" / part
        if (own / "edit.safetensors").exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(own.resolve())  # the same fit
    if options.finished and not (folder / "metrics.json").exists():
        return None
    arguments = [*arguments_of(method, options.backbone), "--model.concepts", f"{concept}.yaml"]
    arguments += ["--data.originals", str(options.out / "originals")]
    metrics, cost = fitted(folder, arguments, threads=options.threads)
    estimates = metrics["estimates"]
    figures = {
        name: mean(estimates.get(COLUMNS[name], {}).get("recognized"))
        for name in ("own", "domain", "retain")
    }
    figures["feature"] = mean(estimates["structure"]["similarity"])
    outcomes = {name: outcome(folder, name, (), options) for name in options.attacks}
    for name in options.attacks if options.tenfold else ():
        if more := ATTACKS[name].tenfold:
            outcomes[f"{name} x10"] = outcome(folder, name, more, options)
    costs = {name: cost[name] for name in ("evaluations", "backwards")}
    finished = {name: result for name, result in outcomes.items() if result}
    cell = {"backbone": options.backbone, "method": method, "concept": concept}
    return {**cell, **figures, **costs, "attacks": finished}


def arguments_of(method: str, backbone: str) -> list[str]:
    """Arguments of `erasure fit` on a world, which may have a config of its own for ESD."""
    key, config, *others = EVERY[method][1]
    if backbone == WORLD:
        return [key, config, *others]
    own = config.replace(".yaml", f"-{backbone.removeprefix(f'{WORLD}-')}.yaml")
    if own in shipped_configs():  # it has the retention term
        config, others = own, [argument for argument in others if argument not in _RETENTION]
    return [key, config, *others, "--model.backbone", backbone]


def outcome(
    run: Path, name: str, more: tuple[str, ...], options: argparse.Namespace
) -> dict[str, Any] | None:
    """Success of an attack with its interval; None if it is missing and is not to be made."""
    folder = run / "attacks" / f"{name.lower()}{'-10' if more else ''}"
    if not (folder / "attack.json").exists():
        if options.finished:
            return None
        command = [sys.executable, "-m", "erasure_lightning", "attack", "--ckpt_path", str(run)]
        command += ["--config", ATTACKS[name].config, "--run_dir", str(folder), *more]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise SystemExit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    outcome = Outcome.load(folder / "attack.json")
    attacked = outcome.success["attacked"]
    success = {k: round(getattr(attacked, k), 3) for k in ("mean", "low", "high")}
    costs = {key: outcome.cost[key] for key in ("evaluations", "backwards")}
    return success | {"images": attacked.images} | costs


def load() -> list[dict[str, Any]]:
    """The figures, in the order of `EVERY` within each concept."""
    return json.loads(FIGURES.read_text())


def merged(old: list[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """All cells, new ones in place of older ones of the same method, concept and world."""
    names = ("backbone", "concept", "method")
    cells = {tuple(cell[name] for name in names): cell for cell in [*old, *new]}
    order = list(EVERY)
    return [cells[key] for key in sorted(cells, key=lambda key: (*key[:2], order.index(key[2])))]


def of_world(cells: list[dict[str, Any]], backbone: str) -> list[dict[str, Any]]:
    """The cells of a world."""
    return [cell for cell in cells if cell["backbone"] == backbone]


def compared(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of `WORLD` that compare methods."""
    return [cell for cell in of_world(cells, WORLD) if cell["method"] in METHODS]


def concepts_of(cells: list[dict[str, Any]]) -> list[str]:
    """The concepts, that with the most cells first."""
    names = [cell["concept"] for cell in cells]
    return sorted(dict.fromkeys(names), key=lambda name: -names.count(name))


def success_of(cell: dict[str, Any], attack: str) -> str:
    """Success of an attack on a cell, as text."""
    result = cell["attacks"].get(attack)
    return f"{result['mean']:.2f}" if result else "-"


def table(
    cells: list[dict[str, Any]],
    rows: dict[str, tuple[str, list[str]]] = METHODS,
    first: str = "method",
) -> str:
    """A table for each concept."""
    columns = [first, "own", "domain", "retain", "feature", *ATTACKS, "with gradient"]
    blocks = []
    for concept in concepts_of([cell for cell in cells if cell["method"] in rows]):
        lines = [f"**{concept}**", "", head(columns)]
        own = {cell["method"]: cell for cell in cells if cell["concept"] == concept}
        for method, cell in ((method, own[method]) for method in rows if method in own):
            figures = [f"{cell[name]:.2f}" for name in ("own", "domain")]
            figures += [f"{cell[name]:.3f}" for name in ("retain", "feature")]
            attacked = [success_of(cell, attack) for attack in ATTACKS]
            lines.append(line([rows[method][0], *figures, *attacked, f"{cell['backwards']:,}"]))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def tenfold(cells: list[dict[str, Any]]) -> str:
    """The attacks by text at their budgets, and behind a slash at ten times the steps."""
    names = [name for name, attack in ATTACKS.items() if attack.tenfold]
    lines = [head(["method", "concept", *names])]
    for cell in cells:
        if any(f"{name} x10" in cell["attacks"] for name in names):
            both = [f"{success_of(cell, n)} / {success_of(cell, f'{n} x10')}" for n in names]
            lines.append(line([METHODS[cell["method"]][0], cell["concept"], *both]))
    return "\n".join(lines)


def listed(names: list[str]) -> str:
    """Names as text: "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def extent(cells: list[dict[str, Any]]) -> str:
    """How much was measured, in a sentence."""
    concepts: dict[int, list[str]] = {}  # by number of methods
    for concept in concepts_of(cells):
        count = sum(cell["concept"] == concept for cell in cells)
        concepts.setdefault(count, []).append(f"the {concept}")
    parts = [
        f"{count} method{'s' if count > 1 else ''} on {listed(names)}"
        for count, names in concepts.items()
    ]
    images = {r["images"] for cell in cells for r in cell["attacks"].values()}
    return (
        f"Measured: {'; '.join(parts)}; one training seed, {max(images)} images of three searches"
        " for each attack. The twenty tasks of the emoji bench, with three training seeds,"
        " are in [a table of their own](robustness.md#tasks-of-the-emoji-bench)."
    )


def who(cells: list[dict[str, Any]]) -> str:
    """The attacks: who can make them, what they cost, and what withstood them."""
    lines = [head(["attack", "searches", "needs", "cost of one search", "restored it in"])]
    concept = concepts_of(cells)[0]
    own = [cell for cell in cells if cell["concept"] == concept]
    for name, attack in ATTACKS.items():
        results = [
            (METHODS[c["method"]][0], c["attacks"][name]) for c in own if name in c["attacks"]
        ]
        restored = [f"{title} ({r['mean']:.2f})" for title, r in results if r["mean"] > 0]
        backwards = max((r["backwards"] for _, r in results), default=0) // 3
        evaluations = max((r["evaluations"] for _, r in results), default=0) // 3
        cost = f"{evaluations:,} evaluations, {backwards:,} with gradient"
        verdict = f"{len(restored)} of {len(results)} methods"
        verdict += f": {'; '.join(restored)}" if restored else ""
        lines.append(line([f"`{name}`", attack.searches, attack.needs, cost, verdict]))
    return "\n".join(lines)


def choice(cells: list[dict[str, Any]]) -> str:
    """One row a method: what it retains, what it costs, and how it fares under attack."""
    columns = ["method", "retain", "feature", "mean by text", "strongest by text"]
    columns += ["ten times: words", "a learned word", "past the encoder", "with gradient"]
    lines = [head(columns)]
    rows = by_text(cells)
    for cell, successes in sorted(rows, key=lambda row: (max(row[1].values()), -row[0]["retain"])):
        worst = max(successes, key=lambda name: successes[name])
        figures = [f"{cell[name]:.3f}" for name in ("retain", "feature")]
        figures += [f"{fmean(successes.values()):.2f}"]
        figures += [f"{successes[worst]:.2f} ({worst})" if successes[worst] else "0.00"]
        longer = [cell["attacks"].get(f"{n} x10", {}).get("mean") for n in BY_TEXT[:-1]]
        figures += ["-" if None in longer else f"{max(longer):.2f}"]
        figures += [success_of(cell, name) for name in ("ConceptInversion x10", "SoftEmbedding")]
        figures += [f"{cell['backwards']:,}"]
        lines.append(line([METHODS[cell["method"]][0], *figures]))
    note = f"Of the {concepts_of(cells)[0]}, under {', '.join(rows[0][1])}."
    return "\n".join([note, "", *lines])


def by_text(cells: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Cells of the first concept, with the attacks by text on all of them."""
    concept = concepts_of(cells)[0]
    own = [cell for cell in cells if cell["concept"] == concept]
    names = [name for name in BY_TEXT if all(name in cell["attacks"] for cell in own)]
    return [(cell, {name: cell["attacks"][name]["mean"] for name in names}) for cell in own]


def other_worlds(cells: list[dict[str, Any]]) -> str:
    """Tables of the worlds of other families."""
    names = dict.fromkeys(cell["backbone"] for cell in cells if cell["backbone"] != WORLD)
    return "\n\n".join(f"On `{name}`:\n\n{table(of_world(cells, name))}" for name in names)


def ablation(cells: list[dict[str, Any]]) -> str:
    """Kinds of adversaries beside each other."""
    return table(of_world(cells, WORLD), ABLATION, "adversary")


def of_main(generate: Callable[[list[dict[str, Any]]], str]) -> Callable[..., str]:
    """The same text, of the methods of `WORLD` alone."""
    return lambda cells: generate(compared(cells))


#: Generated parts of pages.
PARTS = {
    "robustness.md": {
        "extent": of_main(extent),
        "table": of_main(table),
        "tenfold": of_main(tenfold),
        "ablation": ablation,
        "worlds": other_worlds,
    },
    "choosing.md": {
        "extent": of_main(extent),
        "choice": of_main(choice),
        "attacks": of_main(who),
    },
}


def page(name: str, cells: list[dict[str, Any]]) -> str:
    """A page with its generated parts as the figures have them."""
    text = (DOCS / name).read_text()
    for part, generate in PARTS[name].items():
        block = f"<!-- {part} -->\n{generate(cells)}\n<!-- /{part} -->"
        pattern = rf"<!-- {part} -->.*?<!-- /{part} -->"
        text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{name} needs one part {part}; found {count}.")
    return text


def plot(cells: list[dict[str, Any]], file: Path) -> None:
    """Attack success against retention, one point a method, of the concept with most methods."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    concept = concepts_of(cells)[0]
    figure = Figure(figsize=(8.4, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points = by_text(cells)
    for cell, successes in points:
        colour = colour_of(cell["method"])
        x, worst = fmean(successes.values()), max(successes.values())
        axes.plot([x, worst], [cell["retain"]] * 2, color=colour, alpha=0.35, linewidth=1.5)
        axes.plot(worst, cell["retain"], "|", color=colour, alpha=0.5, markersize=9)
        axes.plot(x, cell["retain"], "o", color=colour, markersize=8)
    axes.set_xlabel("share of images that show the concept again, under attack by text")
    axes.set_ylabel("share of images of other things that still show them")
    axes.set_xlim(-0.04, 1.04)
    axes.margins(y=0.15)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    arrow = {"arrowstyle": "->", "color": "0.4"}
    axes.annotate("", (0.02, 0.2), (0.08, 0.1), xycoords="axes fraction", arrowprops=arrow)
    axes.text(0.085, 0.085, "better", transform=axes.transAxes, color="0.4", fontsize=9)
    axes.set_title(
        f"The {concept}, erased by {len(points)} methods. Dot: mean of {', '.join(points[0][1])};"
        "\nline: up to the strongest; circle: ConceptInversion with ten times the steps",
        loc="left",
        fontsize=10,
    )
    longer = tenfold_points(axes, [cell for cell, _ in points])
    named = [(METHODS[c["method"]][0], colour_of(c["method"])) for c, _ in points]
    places = [(fmean(successes.values()), c["retain"]) for c, successes in points]
    labels = [(*place, *name) for place, name in zip(places, named, strict=True)]
    label(figure, axes, labels + longer)
    figure.savefig(file)


def tenfold_points(axes: Any, cells: list[dict[str, Any]]) -> list[tuple[float, float, str, str]]:
    """Plot `ConceptInversion` with ten times the steps; returns places, names and colours."""
    names: dict[tuple[float, float], list[str]] = {}
    for cell in cells:
        if result := cell["attacks"].get("ConceptInversion x10"):
            names.setdefault((result["mean"], cell["retain"]), []).append(
                METHODS[cell["method"]][0]
            )
    for place in names:
        axes.plot(*place, "o", color="black", markerfacecolor="white", markersize=8)
    return [(*place, ", ".join(several), "black") for place, several in names.items()]


def colour_of(method: str) -> str:
    """A method's colour."""
    return (*PALETTE, "#7F7F7F")[list(METHODS).index(method)]


def label(figure: Any, axes: Any, points: list[tuple[float, float, str, str]]) -> None:
    """Write names in colours beside points where they overlap neither each other nor a point."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    taken = [
        (x - 6, y - 6, x + 6, y + 6)
        for x, y in (axes.transData.transform(point[:2]) for point in points)
    ]
    renderer = figure.canvas.get_renderer()
    offsets = [(8, 6), (8, -14), (-8, 6), (-8, -14), (8, 20), (8, -28), (-8, 20), (-8, -28)]
    offsets += [(x, y) for y in (34, -42, 48, -56, 62, -70, 76, -84, 90, -98) for x in (8, -8)]
    for x, y, name, colour in points:
        for dx, dy in offsets:
            side = "left" if dx > 0 else "right"
            lead = {"arrowstyle": "-", "color": colour, "linewidth": 0.7} if abs(dy) > 14 else None
            place = {"textcoords": "offset points", "ha": side, "arrowprops": lead}
            place["color"] = colour
            text = axes.annotate(name, (x, y), (dx, dy), fontsize=9, **place)
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer).padded(1)  # without the line to the point
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and box.y0 >= axes.bbox.y0
            corners = (box.x0, box.y0, box.x1, box.y1)
            if inside and box.y1 <= axes.bbox.y1 and not any(meet(corners, t) for t in taken):
                taken.append(corners)
                break
            text.remove()
        else:
            raise SystemExit(f"The plot has no room for {name}.")


def meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes, each left, bottom, right, top, overlap."""
    apart = one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
    return not apart


def cells_of(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All cells that are, or are to be, measured."""
    for concept in options.concepts:
        for method in options.methods:
            if cell := measured(method, concept, options):
                print(
                    method, concept, {a: r["mean"] for a, r in cell["attacks"].items()}, flush=True
                )
                yield cell


def main() -> None:
    """Measure, and write figures, pages and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"))
    parser.add_argument("--backbone", default=WORLD)
    parser.add_argument("--methods", nargs="+", default=list(EVERY), choices=EVERY)
    parser.add_argument("--concepts", nargs="+", default=["skull", "cigarette", "guitar"])
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--threads", type=int, default=1, help="of each fit")
    parser.add_argument("--tenfold", action="store_true", help="ten times the steps, too")
    parser.add_argument("--finished", action="store_true", help="print what was measured")
    parser.add_argument("--pages", action="store_true", help="write pages and plot alone")
    options = parser.parse_args()
    if not options.pages:
        FIGURES.write_text(json.dumps(merged(load(), cells_of(options)), indent=1) + "\n")
    for name in PARTS:
        (DOCS / name).write_text(page(name, load()))
    plot(compared(load()), DOCS / "robustness.png")


if __name__ == "__main__":
    main()
