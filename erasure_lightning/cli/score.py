"""``erasure score``: published metrics of finished images."""

from pathlib import Path

from rich.console import Console

from erasure_lightning.api.quiet import silence
from erasure_lightning.api.score import (
    NETWORK_OF_METRIC,
    NETWORK_SOURCES,
    ScoreSettings,
    score_images,
)
from erasure_lightning.cli.arguments import Arguments, word_list
from erasure_lightning.files.writing import SCORE_FILE
from erasure_lightning.metrics.score import score_table


def run_score(argv: list[str]) -> None:
    """Score images and print the figures.

    Raises:
        ErasureError: If images, weights or a package are missing, or a score would be overwritten.
    """
    options = vars(_parser().parse(argv))
    folder, metrics, run_dir = (options.pop(name) for name in ("images", "metrics", "run_dir"))
    silence()
    score = score_images(folder, metrics, ScoreSettings(**options), run_dir)
    Console().print(score_table({"": score}))
    print(
        f"Scored {score.protocol['drawn']['images']} images; the figures and their protocol are"
        f" in {(run_dir or folder) / SCORE_FILE}."
    )


def _parser() -> Arguments:
    parser = Arguments(
        "score",
        "Score finished images by published metrics. A network is downloaded only where you name a"
        " Hub id (owner/model) rather than a folder.",
    )
    parser.add_argument(
        "images", type=Path, metavar="IMAGES", help="A folder of images, as predict writes."
    )
    parser.add_argument(
        "--metrics",
        type=word_list,
        required=True,
        metavar="A,B",
        help=f"Some of {', '.join(NETWORK_OF_METRIC)}.",
    )
    parser.add_options(
        str,
        **{network: _network_help(network) for network in NETWORK_SOURCES},
        labels="File with the labels of accuracy, one a line; # begins a comment.",
        template="Sentence that a label is put into, for accuracy.",
    )
    parser.add_options(
        Path,
        reference="Folder of real images that fid and kid compare with.",
        run_dir=f"Folder of {SCORE_FILE}; by default that of the images.",
    )
    parser.add_options(float, threshold="Lowest score of a detection that counts, for nudenet.")
    parser.set_defaults(template=ScoreSettings.template, threshold=ScoreSettings.threshold)
    return parser


def _network_help(network: str) -> str:
    metrics = [metric for metric, own in NETWORK_OF_METRIC.items() if own == network]
    return f"The network of {' and '.join(metrics)}: {NETWORK_SOURCES[network]}."
