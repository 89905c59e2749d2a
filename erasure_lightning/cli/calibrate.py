"""``erasure calibrate``: how near words come to a concept's, and the bounds of its neighbourhood
that follow.
"""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
import yaml
from rich.console import Console
from rich.table import Table

from erasure_lightning.api.quiet import silence
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.cli.configs import SHIPPED
from erasure_lightning.cli.plots import plot_calibration
from erasure_lightning.concepts.concept import Concept, ConceptKind
from erasure_lightning.concepts.files import read_concepts
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import naming
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.runs.folder import unused_folder
from erasure_lightning.training.calibration import Calibration, calibrate

#: Shares of a group at whose cosines the table looks.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def calibrate_bounds(argv: list[str]) -> None:
    """Measure a concept's neighbourhood, print what follows, and plot it.

    Raises:
        ErasureError: If nothing is associated with the concept, or something would be overwritten.
    """
    options = _parser().parse_args(argv)
    silence()
    backbone = load_backbone(options.backbone).to(torch.accelerator.current_accelerator() or "cpu")
    concept = Concept(options.concept, kind=options.kind)
    _check_known(backbone, concept)
    concept = replace(concept, domain=_associated(options.concept, options.associated))
    folder = _folder(options.out, concept)
    found = calibrate(backbone, concept, options.synonyms, options.unrelated, options.states)
    write_atomically(
        folder / "calibration.png",
        plot_calibration(found, concept.name, backbone.name, options.states),
    )
    write_atomically(folder / "calibration.yaml", _config(found).encode())
    Console().print(_table(found))
    print(_premise(found))
    print(f"\n{_config(found)}\nThe plot and this config are in {folder}.")


def _parser() -> Arguments:
    parser = Arguments(
        "erasure calibrate",
        description=(
            "Measure how near rephrasings, associated and unrelated words come to a concept in the"
            " text encoder, and set the bounds of its neighbourhood by them, as RealEra needs."
        ),
    )
    parser.add_argument("--concept", required=True, metavar="WORDS", help="what is to be erased")
    parser.add_argument(
        "--backbone", default="emoji-world", metavar="NAME", help="a world, a folder or a Hub id"
    )
    parser.add_argument(
        "--kind",
        choices=get_args(ConceptKind),
        default="thing",
        help="decides which sentences it is in",
    )
    parser.add_argument(
        "--synonyms", type=_words, default=[], metavar="A,B", help="other words for it"
    )
    parser.add_argument("--associated", type=_words, default=[], metavar="A,B", help=(
        "words that call it without naming it; by default its domain in the shipped files of concepts"
    ))  # fmt: skip
    parser.add_argument(
        "--unrelated",
        type=_words,
        default=[],
        metavar="A,B",
        help="words to keep; all others if none",
    )
    parser.add_argument("--states", choices=("tokens", "eot"), default="tokens", help=(
        "compare all tokens from the concept's words on, aligned, or the end of text alone"
    ))  # fmt: skip
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="a new or empty folder; calibration-CONCEPT by default",
    )
    return parser


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _associated(name: str, given: list[str]) -> list[str]:
    """What the user says, else the domain of that concept, and of what is erased with it, in the
    shipped files.
    """
    if given:
        return given
    for path in sorted((SHIPPED / "concepts").glob("*.yaml")):
        concepts = read_concepts(path)
        if any(naming([name])(concept.name) for concept in concepts):
            own = [
                word
                for concept in concepts
                if naming([name])(concept.name)
                for word in concept.domain
            ]
            return own or [word for concept in concepts for word in concept.domain]
    raise ErasureError(
        f"calibrate needs words that call {name!r} without naming it, and no shipped file of"
        " concepts has them; give --associated A,B."
    )


def _check_known(backbone: Backbone, concept: Concept) -> None:
    world = backbone.world
    if world is not None and not world.knows(concept.name):
        near = ", ".join(world.nearest(concept.name)) or "see its labels.json"
        raise ErasureError(
            f"The world {world.name} does not know {concept.name!r}. Nearest: {near}."
        )


def _folder(out: Path | None, concept: Concept) -> Path:
    if out is None:
        return unused_folder(Path(f"calibration-{concept.name.replace(' ', '-')}"))
    if unused_folder(out) != out:
        raise ErasureError(f"{out} is not empty, and nothing is overwritten. Choose another --out.")
    return out


def _table(found: Calibration) -> Table:
    levels = torch.tensor(QUANTILES)
    heads = [f"{100 * level:g} %" for level in QUANTILES]
    table = Table("cosine", "words", *heads, "distance", "inside", caption=(
        f"quantiles of sentences; median distance; share between {found.min_cosine} and {found.max_cosine}"
    ))  # fmt: skip
    for name, group in found.groups.items():
        cosines = [f"{value:.2f}" for value in group.cosines.quantile(levels).tolist()]
        inside = f"{100 * group.within(found.min_cosine, found.max_cosine):.0f} %"
        table.add_row(
            name, str(len(set(group.words))), *cosines, f"{group.distances.median():.1f}", inside
        )  # fmt: skip
    return table


def _premise(found: Calibration) -> str:
    chance = (
        f"an associated sentence is nearer than an unrelated one in {100 * found.separation():.0f}"
        " % of pairs"
    )
    if found.holds():
        return f"The premise holds: {chance}."
    return (
        f"The premise does not hold: {chance}. Random neighbours cannot tell them apart and only"
        " smooth."
    )


def _config(found: Calibration) -> str:
    bounds = {key: getattr(found, key) for key in ("min_cosine", "max_cosine", "max_distance")}
    return yaml.safe_dump(
        {"model": {"class_path": "RealEra", "init_args": bounds}}, sort_keys=False
    )
