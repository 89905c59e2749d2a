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
        f"Scored {score.protocol['drawn']['pictures']} images; the figures and their protocol are"
        f" in {(run_dir or folder) / SCORE_FILE}."
    )


def _parser() -> Arguments:
    parser = Arguments(
        "score",
        "Score finished images by published metrics. Nothing is downloaded unless you name a Hub id"
        " (owner/model) in place of a folder.",
    )
    parser.add_argument(
        "images", type=Path, metavar="IMAGES", help="What predict wrote, or a folder of images."
    )
    parser.add_argument(
        "--metrics",
        type=word_list,
        required=True,
        metavar="A,B",
        help=f"Some of {', '.join(NETWORK_OF_METRIC)}.",
    )
    for network, source in NETWORK_SOURCES.items():
        users = [name for name, needed in NETWORK_OF_METRIC.items() if needed == network]
        parser.add_argument(f"--{network}", help=f"The network of {' and '.join(users)}: {source}.")
    parser.add_argument(
        "--reference", type=Path, help="Folder of real images that fid and kid compare with."
    )
    parser.add_argument(
        "--labels", help="File of what an image may show, one label a line, for accuracy."
    )
    parser.add_argument(
        "--template",
        default=ScoreSettings.template,
        help="Sentence that a label is put into, for accuracy.",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=ScoreSettings.threshold,
        help="Least score of a detection that counts, for nudenet.",
    )
    parser.add_argument(
        "--run_dir", type=Path, help=f"Folder of {SCORE_FILE}; by default the images' own."
    )
    return parser
