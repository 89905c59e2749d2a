"""Overhead of a training step over its bare student: ``python benchmarks/steps.py``.

Every gradient method's shipped config, as `erasure fit` runs it. *bare* is the part of a step that
no implementation can save: the student's evaluations (denoiser and text encoder) that carry a
gradient, those of attacks included, and their backward passes. *whole* is the time from the end of
a step to the end of the next, with all that Lightning, loggers and callbacks do in between. Both
are processor time of the same steps (one thread), independent of the machine's load. The difference
consists of *teacher*, evaluations of a denoiser without gradient, mostly of the frozen original;
*words*, tokenizing, and encoding without gradient; *rest*, losses, masks, the optimizer, logs, and
everything else. Medians over the steps after the first quarter, so that the rare steps that draw a
bank's trajectories again have no effect. With ``--accelerator cuda`` times are those of the clock,
and the GPU has finished at the beginning and the end of each. Other configs and arguments:
``--cases flux/esd --steps 10 --arguments --model.backbone FOLDER``.
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

#: Shipped configs of gradient methods, or the arguments of a case.
CASES = {
    "esd": [],
    "all-but-one": [],
    "all-but-one, its own two terms": [
        *("--config", "all-but-one.yaml"),
        *("--trainer.callbacks", "null"),
    ],
    "sdd": [],
    "sage": [],
    "ca": [],
    "spm": [],
    "mace": [],
    "realera": [],
    "receler": [],
    "advunlearn": [],
    "ant": [],
    "salun": [],
}
PARTS = ("bare", "teacher", "words")


class Clock(Callback):
    """Times steps and their parts."""

    def __init__(self, accelerator: str) -> None:
        self.accelerator = accelerator
        self.steps: list[Counter] = []
        self.parts: Counter = Counter()
        self.last = 0.0

    def now(self) -> float:
        """Seconds: of the processor, or of the clock once a GPU has finished."""
        if self.accelerator == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Record a step's times."""
        now = self.now()
        self.steps.append(self.parts + Counter(whole=now - self.last))
        self.last = now
        self.parts = Counter()

    def timer(
        self, work: Callable[..., Any], part: Callable[[Any, dict[str, Any]], str]
    ) -> Callable[..., Any]:
        """A timed function; its result and keyword arguments decide which part is counted."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = work(*args, **kwargs)
            self.parts[part(result, kwargs)] += self.now() - start
            return result

        return timed

    def time_models(self, module: GradientErasure) -> None:
        """Time the evaluations of both models."""
        for model in (module.backbone, module.original):
            for part, networks in (("teacher", [model.denoiser]), ("words", model.text_encoders)):
                for network in networks:
                    if network.forward.__name__ != "timed":  # shared networks are timed once
                        network.forward = self.timer(network.forward, forward_part(part))
            model.embed = self.timer(model.embed, lambda *_: "words")


def forward_part(otherwise: str) -> Callable[[Any, dict[str, Any]], str]:
    """``bare`` if a network's output requires a gradient."""
    return lambda output, _: "bare" if output[0].requires_grad else otherwise


def backward_part(_: Any, kwargs: dict[str, Any]) -> str:
    """``bare``, unless the graph is retained, as for logged gradient norms."""
    return "rest" if kwargs.get("retain_graph") else "bare"


def step_times(case: str, options: argparse.Namespace) -> list[Counter]:
    """The times of a case's steps after the first quarter."""
    clock = Clock(options.accelerator)
    steps = options.steps
    with TemporaryDirectory() as folder, ExitStack() as patches:
        arguments = CASES.get(case) or ["--config", f"{case}.yaml"]
        arguments = [
            *arguments,
            "--data.steps_per_concept",
            str(steps),
            "--run_dir",
            f"{folder}/run",
        ]
        arguments += ["--trainer.accelerator", options.accelerator, *options.arguments]
        command = CommandLine(
            "fit", [*arguments, "--trainer.enable_progress_bar", "false"], LastCheckpoint()
        )
        module, trainer = command.model, command.trainer
        trainer.callbacks.append(clock)
        for owner, name in ((Tensor, "backward"), (torch.autograd, "grad")):
            patches.enter_context(
                patch.object(owner, name, clock.timer(getattr(owner, name), backward_part))
            )
        start = module.on_train_start
        module.on_train_start = lambda: (start(), clock.time_models(module))
        trainer.fit(module, datamodule=command.datamodule)
    return clock.steps[steps // 4 :]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="names of configs")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arguments", nargs=argparse.REMAINDER, default=[], help="of each fit")
    options = parser.parse_args()
    shares = [f"{part} / bare" for part in (*PARTS[1:], "rest")]
    print(head(["config", "whole, ms", "bare, ms", "ratio", *shares]))
    for case in options.cases:
        steps = step_times(case, options)
        whole, *parts = (median(step[name] for step in steps) for name in ("whole", *PARTS))
        shares = [median(step[name] / step["bare"] for step in steps) for name in PARTS[1:]]
        rest = median(
            (step["whole"] - sum(step[name] for name in PARTS)) / step["bare"] for step in steps
        )
        ratio = median(step["whole"] / step["bare"] for step in steps)
        figures = [f"{whole * 1e3:.0f}", f"{parts[0] * 1e3:.0f}"]
        figures += [f"{figure:.2f}" for figure in (ratio, *shares, rest)]
        print(line([case, *figures]), flush=True)


if __name__ == "__main__":
    main()
