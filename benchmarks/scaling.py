"""Growth of time and memory with the size of a fit: ``python benchmarks/scaling.py``.

Random models as `TinyBackbone` with a wider denoiser; ESD with a bank, two sentences a step. One of
denoiser width, concepts and trajectories changes at a time. *step* is the median time from a step's
end to the next step's; *memory* is the peak of a process above its memory after all imports;
*before* is the time before the first step, mostly the bank's rollouts. Every point is measured in a
process of its own, in turns, and the fastest of several rounds counts. Prints a table and draws it.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import diffusers  # noqa: F401  (before the processes, which must not measure imports)
import transformers  # noqa: F401
from diffusers import UNet2DConditionModel
from lightning.pytorch.callbacks import Callback
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from rows import head, line

from erasure_lightning.backbones.stable_diffusion import StableDiffusion
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.benchmark.pareto import PALETTE
from erasure_lightning.callbacks.cost import peak_memory
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.methods.esd import ESD
from erasure_lightning.testing import quick_fit
from erasure_lightning.training.trajectory_bank import TrajectoryBank

#: Sizes of a point, apart from the one that changes.
DEFAULTS = {"width": 32, "concepts": 1, "trajectories": 32}
POINTS = {
    "width": (32, 64, 128, 256),
    "concepts": (1, 10, 100, 1000),
    "trajectories": (8, 32, 128, 512, 2048),
}
LABELS = {
    "width": "width of the denoiser",
    "concepts": "concepts",
    "trajectories": "trajectories in the bank",
}
FIGURES = ("step, ms", "memory, MiB", "bank, MiB", "before, s", "parameters, M")
STEPS = 12


class Clock(Callback):
    """Records the processor time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Record the start of the first step."""
        self.ends = self.ends or [time.process_time()]

    def on_train_batch_end(self, *_: Any) -> None:
        """Record the end of a step."""
        self.ends.append(time.process_time())


def wide_backbone(width: int) -> StableDiffusion:
    """`TinyBackbone` with a denoiser of ``width`` and ``2 * width`` channels, multiples of 8."""
    tiny = TinyBackbone()
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    scheduler = tiny.to_pipeline().scheduler
    wide = StableDiffusion(
        name="wide", denoiser=unet, vae=tiny.vae, towers=tiny.towers, scheduler=scheduler
    )
    return wide.requires_grad_(False).eval()


def measured(point: dict[str, int]) -> dict[str, float]:
    """A point's figures, measured in this process alone."""
    held = peak_memory()
    clock = Clock()
    backbone = wide_backbone(point["width"])
    letters = [chr(ord("a") + i) for i in range(10)]
    names = [f"{a}{b}{c}" for a in letters for b in letters for c in letters][: point["concepts"]]
    bank = TrajectoryBank(trajectories=point["trajectories"], steps=2)
    start = time.process_time()
    module = ESD(concepts=[Concept(name) for name in names], backbone=backbone, latents=bank)
    quick_fit(module, STEPS, clock)
    steps = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    figures = (
        1e3 * median(steps[STEPS // 4 :]),
        2**10 * (peak_memory() - held),
        bank.nbytes() / 2**20,
        clock.ends[1] - start,
        sum(p.numel() for p in backbone.denoiser.parameters()) / 1e6,
    )
    return dict(zip(FIGURES, figures, strict=True))


def least(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The least of each figure over several measurements."""
    return {name: min(each[name] for each in rounds) for name in FIGURES}


def sweep(
    rounds: int, report: Callable[[str], None]
) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """Figures of every point, by the size that changes."""
    points = [
        (size, value, DEFAULTS | {size: value})
        for size, values in POINTS.items()
        for value in values
    ]
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        measurements = [
            [pool.apply(measured, (point,)) for _, _, point in points] for _ in range(rounds)
        ]
    series: dict[str, list[tuple[int, dict[str, float]]]] = {size: [] for size in POINTS}
    for (size, value, _), *each in zip(points, *measurements, strict=True):
        series[size].append((value, least(each)))
        figures = [f"{figure:.3g}" for figure in series[size][-1][1].values()]
        report(line([size, str(value), *figures]))
    return series


def draw(series: dict[str, list[tuple[int, dict[str, float]]]], path: Path) -> None:
    """Plot step time and memory against each of the three sizes."""
    figure = Figure(figsize=(9.6, 5.2), dpi=150, layout="constrained")
    rows = figure.subplots(2, len(series), sharex="col", sharey="row")
    for column, (size, points) in enumerate(series.items()):
        values = [value for value, _ in points]
        plots = (("step, ms",), ("memory, MiB", "bank, MiB"))
        for axes, names in zip(rows[:, column], plots, strict=True):
            for name, colour in zip(names, PALETTE, strict=False):
                heights = [figures[name] for _, figures in points]
                label = name.split(",")[0]
                axes.plot(values, heights, color=colour, marker="o", label=label)
            _format_axes(axes, values)
        rows[1, column].set_xlabel(LABELS[size])
    rows[0, 0].set_ylabel("step, ms")
    rows[1, 0].set_ylabel("memory, MiB")
    rows[1, 0].legend(frameon=False, fontsize=9)
    title = "ESD on random models: a step of two sentences (one thread), and size a fit holds"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold")
    figure.savefig(path)


def _format_axes(axes: Axes, values: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(values, [str(value) for value in values])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def main() -> None:
    """Print the table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/scaling.png"))
    options = parser.parse_args()
    print(head(["changes", "to", *FIGURES]))
    draw(sweep(options.rounds, print), options.out)


if __name__ == "__main__":
    main()
