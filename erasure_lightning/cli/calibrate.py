"""``erasure calibrate``: the bounds of a concept's neighbourhood in the text encoder."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
import yaml
from rich.console import Console
from rich.table import Table

from erasure_lightning.api.accelerator import default_device
from erasure_lightning.api.configs import SHIPPED
from erasure_lightning.api.quiet import silence
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.cli.arguments import Arguments, word_list
from erasure_lightning.concepts.concept import Concept, ConceptKind
from erasure_lightning.concepts.files import read_concepts
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import naming
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.runs.folder import new_folder
from erasure_lightning.training.backbone_checks import check_backbone
from erasure_lightning.training.calibration import Calibration, calibrate
from erasure_lightning.training.calibration_plot import plot_calibration

#: Quantiles of a group's cosines in the table.
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def run_calibrate(argv: list[str]) -> None:
    """Measure a concept's neighbourhood, print the bounds, and plot it.

    Raises:
        ErasureError: If no word is associated with the concept, or a file would be overwritten.
    """
    options = _parser().parse(argv)
    silence()
    backbone = load_backbone(options.backbone).to(default_device())
    concept = Concept(options.concept, kind=options.kind)
    check_backbone(backbone, [concept], needs=(), owner="erasure calibrate")
    associated = options.associated or _shipped_domain(options.concept)
    concept = replace(concept, domain=associated)
    default = Path(f"calibration-{concept.name.replace(' ', '-')}")
    folder = new_folder(options.run_dir, default)
    calibration = calibrate(backbone, concept, options.synonyms, options.unrelated, options.states)
    plot = plot_calibration(calibration, concept.name, backbone.name, options.states)
    config = _config(calibration)
    write_atomically(folder / "calibration.png", plot)
    write_atomically(folder / "calibration.yaml", config.encode())
    Console(markup=False).print(_table(calibration))
    print(_premise(calibration))
    print(f"\n{config}\nThe plot and this config are in {folder}.")


def _parser() -> Arguments:
    parser = Arguments(
        "calibrate",
        "Measure how near rephrasings, associated and unrelated words come to a concept in the text"
        " encoder, and derive the bounds of its neighbourhood, as RealEra needs.",
    )
    parser.add_argument("--concept", required=True, help="The words of what is to be erased.")
    parser.add_argument(
        "--backbone", required=True, help="A world, a pipeline's folder or a Hub id."
    )
    parser.add_argument(
        "--kind",
        choices=get_args(ConceptKind),
        default="thing",
        help="Kind of the concept, which decides its sentences.",
    )
    parser.add_argument(
        "--states",
        choices=("tokens", "eot"),
        default="tokens",
        help="Compare all tokens from the concept's words on, aligned, or the end of text alone.",
    )
    parser.add_options(
        word_list,
        synonyms="Other words for it, A,B.",
        associated="Words that mean it without naming it, A,B; by default its domain in the shipped"
        " files of concepts.",
        unrelated="Words to retain, A,B; by default all other labels of the world.",
    )
    parser.set_defaults(synonyms=[], associated=[], unrelated=[])
    parser.add_options(Path, run_dir="A new or empty folder; by default calibration-CONCEPT.")
    return parser


def _shipped_domain(name: str) -> list[str]:
    """The domain of a concept in the shipped files; without its own, its file's other domains."""
    is_concept = naming([name])
    for path in sorted((SHIPPED / "concepts").glob("*.yaml")):
        concepts = read_concepts(path)
        own = [concept for concept in concepts if is_concept(concept.name)]
        if own:
            words = [word for concept in own for word in concept.domain]
            return words or [word for concept in concepts for word in concept.domain]
    raise ErasureError(
        f"calibrate needs words that call {name!r} without naming it, and no shipped file of"
        " concepts has them; give --associated A,B."
    )


def _table(calibration: Calibration) -> Table:
    low = calibration.min_cosine
    high = calibration.max_cosine
    levels = torch.tensor(_QUANTILES)
    heads = [f"{100 * level:g} %" for level in _QUANTILES]
    table = Table(
        "cosine",
        "words",
        *heads,
        "distance",
        "inside",
        caption=f"quantiles of sentences; median distance; share between {low} and {high}",
    )
    for name, group in calibration.groups.items():
        table.add_row(
            name,
            str(len(set(group.words))),
            *(f"{value:.2f}" for value in group.cosines.quantile(levels).tolist()),
            f"{group.distances.median():.1f}",
            f"{100 * group.within(low, high):.0f} %",
        )
    return table


def _premise(calibration: Calibration) -> str:
    chance = (
        "an associated sentence is nearer than an unrelated one in"
        f" {100 * calibration.separation():.0f} % of pairs"
    )
    if calibration.holds():
        return f"The premise holds: {chance}."
    return (
        f"The premise does not hold: {chance}. Random neighbours do not separate them and only"
        " smooth."
    )


def _config(calibration: Calibration) -> str:
    """A config of RealEra's bounds, as YAML."""
    names = ("min_cosine", "max_cosine", "max_distance")
    bounds = {name: getattr(calibration, name) for name in names}
    content = {"model": {"class_path": "RealEra", "init_args": bounds}}
    return yaml.safe_dump(content, sort_keys=False)
