"""What a training step costs beside what it must cost: ``python benchmarks/steps.py``.

Every gradient method's shipped config, as `erasure fit` runs it. *bare* is the part of a step that
no implementation can save: the student's evaluations (denoiser and text encoder) that carry a
gradient, those of attacks included, and the way back through them. *whole* is the time from the end
of a step to the end of the next, with all that Lightning, loggers and callbacks do in between. Both
are clocks of the same steps, of the processor's time (one thread): what else the machine does is in
neither. What the ratio consists of: *teacher*, evaluations of a denoiser without gradient, mostly
the frozen original's; *words*, tokenizing, and encoding without gradient; *rest*, losses, masks,
the optimizer, logs, and everything else. Medians over the steps behind the first quarter; a step
that walks a bank anew is rare and so left out.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.callbacks import Callback
from rows import head, line
from torch import Tensor

from erasure_lightning.callbacks.interrupt import LastCheckpoint
from erasure_lightning.cli.run import CommandLine
from erasure_lightning.training.gradient import GradientErasure

#: Shipped configs of gradient methods, and what is overridden in them.
CASES = {
    **{name: [] for name in ("esd", "all-but-one")},
    "all-but-one, its own two terms": [
        "--config",
        "all-but-one.yaml",
        "--trainer.callbacks",
        "null",
    ],
    **{
        name: []
        for name in (
            "sdd",
            "sage",
            "ca",
            "spm",
            "mace",
            "realera",
            "receler",
            "advunlearn",
            "ant",
            "salun",
        )
    },
}
PARTS = ("bare", "teacher", "words")


class Clock(Callback):
    """Times steps and, apart, what is done in them."""

    def __init__(self) -> None:
        self.steps: list[Counter] = []
        self.parts: Counter = Counter()
        self.last = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        """Close a step."""
        now = time.process_time()
        self.steps.append(self.parts + Counter(whole=now - self.last))
        self.last, self.parts = now, Counter()

    def timed(
        self, work: Callable[..., Any], part: Callable[[Any, dict[str, Any]], str]
    ) -> Callable[..., Any]:
        """The same work, whose time counts as the part that its result and its arguments say."""

        def listening(*given: Any, **named: Any) -> Any:
            start = time.process_time()
            result = work(*given, **named)
            self.parts[part(result, named)] += time.process_time() - start
            return result

        return listening

    def listen(self, module: GradientErasure) -> None:
        """Time what both models are asked."""
        for model in (module.backbone, module.original):
            for part, asked in (("teacher", [model.denoiser]), ("words", model.text_encoders)):
                for network in asked:
                    if network.forward.__name__ != "listening":  # a network that both share, once
                        network.forward = self.timed(network.forward, carrying(part))
            model.embed = self.timed(model.embed, lambda *_: "words")


def carrying(otherwise: str) -> Callable[[Any, dict[str, Any]], str]:
    """Bare where a network's answer carries a gradient."""
    return lambda said, _: "bare" if said[0].requires_grad else otherwise


def walked_back(_: Any, named: dict[str, Any]) -> str:
    """Bare, unless the graph is kept, as it is for the gradient norms of a log."""
    return "rest" if named.get("retain_graph") else "bare"


def clocked(case: str, steps: int) -> list[Counter]:
    """The times of so many steps of a case's run."""
    clock = Clock()
    with TemporaryDirectory() as folder, ExitStack() as patches:
        given = CASES[case] or ["--config", f"{case}.yaml"]
        given = [*given, "--data.rounds", str(steps), "--run_dir", f"{folder}/run"]
        command = CommandLine(
            "fit", [*given, "--trainer.enable_progress_bar", "false"], LastCheckpoint()
        )
        module, trainer = command.model, command.trainer
        trainer.callbacks.append(clock)
        for owner, name in ((Tensor, "backward"), (torch.autograd, "grad")):
            patches.enter_context(
                patch.object(owner, name, clock.timed(getattr(owner, name), walked_back))
            )
        start = module.on_train_start
        module.on_train_start = lambda: (start(), clock.listen(module))
        trainer.fit(module, datamodule=command.datamodule)
    return clock.steps[steps // 4 :]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    print(
        head(
            [
                "config",
                "whole, ms",
                "bare, ms",
                "ratio",
                *(f"{part} / bare" for part in (*PARTS[1:], "rest")),
            ]
        )
    )
    for case in options.cases:
        steps = clocked(case, options.steps)
        whole, *parts = (median(step[name] for step in steps) for name in ("whole", *PARTS))
        shares = [median(step[name] / step["bare"] for step in steps) for name in PARTS[1:]]
        rest = median(
            (step["whole"] - sum(step[name] for name in PARTS)) / step["bare"] for step in steps
        )
        ratio = median(step["whole"] / step["bare"] for step in steps)
        figures = [
            f"{whole * 1e3:.0f}",
            f"{parts[0] * 1e3:.0f}",
            *(f"{v:.2f}" for v in (ratio, *shares, rest)),
        ]
        print(line([case, *figures]), flush=True)


if __name__ == "__main__":
    main()
