"""Every method on cigarette, heart and weapon of the emoji world: ``python benchmarks/methods.py``.

With ``--backbone emoji-world-xl`` (or ``-flux``) five methods on the same world in the SDXL (or
FLUX) family, and on two held-out concepts more: guitar and skull.

Each row is one `erasure fit` with the method's shipped config (``esd-xl.yaml`` in place of
``esd.yaml``, and the like, where the family has its own), the concepts of
``configs/concepts/``, and the world's protocol: seeds 0, 1, 2, DDIM with 20 steps, guidance 4, 54
other labels. The rows of official implementations were measured once by the same protocol, on two
cores. Finished runs in ``--out`` are reused, so that a stopped table is resumed.
"""

import argparse
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from rows import fitted, head, line, mean

from erasure_lightning.api.configs import shipped_configs

CONCEPTS = ("cigarette", "heart", "weapon")
METHODS = (
    *("sage", "all-but-one", "realera", "esd", "ca", "uce", "rece", "mace"),
    *("spm", "sdd", "salun", "advunlearn", "receler", "ant", "race", "stereo"),
    *("eap", "trce", "eraseflow", "eraseanything", "gloce", "adavd", "sld", "safree", "fmn"),
    *("age", "speed"),
)

#: Methods and concepts of the SDXL family's table.
XL_METHODS = ("sage", "all-but-one", "realera", "esd", "uce")
XL_CONCEPTS = (*CONCEPTS, "guitar", "skull")

HEAD = (
    *("method", "own", "domain", "retain", "harmonic", "feature", "L1"),
    *("seconds", "peak GiB", "trained", "evaluations", "with gradient"),
)

#: Own, domain, retain, feature, L1, seconds of the official implementations.
OFFICIAL = {
    "cigarette": {
        "official UCE": (0.00, 0.00, 0.96, 0.920, 0.048, 11),
        "official ESD-x, 200 iterations": (0.00, 0.00, 0.96, 0.918, 0.050, 231),
    },
    "heart": {"official UCE": (0.00, 0.00, 1.00, 0.955, 0.046, 10)},
    "weapon": {"official UCE": (0.00, 0.00, 0.87, 0.842, 0.078, 12)},
}


def harmonic(own: float, domain: float, retain: float) -> float:
    """MACE's ``H_o``: harmonic mean of ``1 - own``, ``1 - domain`` and ``retain``."""
    return harmonic_mean([1 - own, 1 - domain, retain])


def official(name: str, figures: tuple[float, ...]) -> str:
    """A row of an official implementation."""
    own, domain, retain, feature, l1, seconds = figures
    values = (own, domain, retain, harmonic(own, domain, retain), feature, l1)
    return line([name, *(f"{v:.3f}" for v in values), f"{seconds:.0f}", *["-"] * 4])


def measured(method: str, concept: str, options: argparse.Namespace) -> tuple[dict, dict] | None:
    """Estimates and cost of a run; None if it is missing and ``--finished`` forbids to fit it."""
    folder = options.out / f"{method}-{concept}"
    others = [] if options.backbone == "emoji-world" else ["--model.backbone", options.backbone]
    own = f"{method}-{options.backbone.removeprefix('emoji-world-')}.yaml"
    config = own if own in shipped_configs() else f"{method}.yaml"
    if options.finished and not (folder / "metrics.json").exists():
        return None
    arguments = ["--config", config, "--model.concepts", f"{concept}.yaml"]
    arguments += ["--data.seeds", options.seeds, *others]
    # Every method is compared with the same original images.
    arguments += ["--data.originals", str(options.out / "originals")]
    metrics, cost = fitted(folder, arguments, threads=options.threads)
    return metrics["estimates"], cost


def quality(estimates: dict) -> tuple[float, ...]:
    """Own, domain, retain, harmonic mean, feature, L1."""
    own, domain, retain = (
        mean(estimates[g]["recognized"]) for g in ("efficacy", "generality", "specificity")
    )
    feature, l1 = (mean(estimates["structure"][name]) for name in ("similarity", "distance"))
    return own, domain, retain, harmonic(own, domain, retain), feature, l1


def our_row(method: str, run: tuple[dict, dict] | None) -> str:
    """The row of a run."""
    if run is None:
        return line([method, *["-"] * (len(HEAD) - 1)])
    estimates, cost = run
    counts = (cost["trained_parameters"], cost["evaluations"], cost["backwards"])
    costs = [
        f"{cost['seconds']:.1f}",
        f"{cost['peak_gib']:.2f}",
        *(f"{count:,}" for count in counts),
    ]
    return line([method, *(f"{v:.3f}" for v in quality(estimates)), *costs])


def original_row(run: tuple[dict, dict] | None) -> str:
    """The row of the original model, from the figures of a run on it."""
    if run is None:
        return line(["before", *["-"] * (len(HEAD) - 1)])
    groups = (
        run[0][group]["recognized"]["before"]["mean"]
        for group in ("efficacy", "generality", "specificity")
    )
    return line(["before", *(f"{value:.3f}" for value in groups), *["-"] * (len(HEAD) - 4)])


def compact(method: str, runs: list[tuple[dict, dict] | None]) -> str:
    """A row for all concepts: own, domain, retain and feature of each."""
    cells = [
        "-" if r is None else " ".join(f"{quality(r[0])[i]:.2f}" for i in (0, 1, 2, 4))
        for r in runs
    ]
    return line([method, *cells])


def print_compact(options: argparse.Namespace, runs: dict[tuple[str, str], Future[Any]]) -> None:
    """Print one table for all concepts."""
    print(head(["own domain retain feature", *options.concepts]))
    for method in options.methods:
        print(compact(method, [runs[concept, method].result() for concept in options.concepts]))


def main() -> None:
    """Print a table for each concept, or one for all, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, help="runs/methods by default, runs/BACKBONE of another model"
    )
    parser.add_argument("--backbone", default="emoji-world", help="the model: a world")
    parser.add_argument("--methods", nargs="+", help="names of configs")
    parser.add_argument("--concepts", nargs="+", help="names of lists in configs/concepts")
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--jobs", type=int, default=2, help="fits side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each fit")
    parser.add_argument(
        "--compact", action="store_true", help="one table: own, domain, retain, feature"
    )
    parser.add_argument(
        "--finished", action="store_true", help="print finished runs alone, without fits"
    )
    options = parser.parse_args()
    xl = options.backbone != "emoji-world"
    options.out = options.out or Path("runs", options.backbone if xl else "methods")
    options.methods = options.methods or (XL_METHODS if xl else METHODS)
    options.concepts = options.concepts or (XL_CONCEPTS if xl else CONCEPTS)
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = {
            (concept, method): pool.submit(measured, method, concept, options)
            for concept in options.concepts
            for method in options.methods
        }
        if options.compact:
            print_compact(options, runs)
            return
        for concept in options.concepts:
            print(f"\n**{concept}**\n\n{head(list(HEAD))}")
            print(original_row(runs[concept, options.methods[0]].result()))
            for name, figures in OFFICIAL.get(concept, {}).items() if not xl else ():
                print(official(name, figures))
            for method in options.methods:
                print(our_row(method, runs[concept, method].result()), flush=True)


if __name__ == "__main__":
    main()
