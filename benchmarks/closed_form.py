"""Time of closed forms on matrices of real sizes: ``python benchmarks/closed_form.py``.

Random maps as many and as large as the keys and values of every cross-attention of Stable Diffusion
1.x and SDXL, in float32. *UCE-like*: one token a concept. *MACE-like*: all 77 tokens of a concept
in every sentence. *gather* accumulates the rows into the equations; *solve* solves for the
correction that all maps share; *apply* computes every new map. *peak* is the speed of *apply*
relative to a square matrix product timed in turns with it. *error* is the largest relative
difference from the same computation in float64. *map by map* is the straightforward way of the
official codes: equations built and solved for every map on its own, in float32; timed on one map of
each size and multiplied, with its own error beside it. Seconds are processor time of one thread,
which is independent of other load; with ``--threads 2`` wall-clock time, for which the machine must
be idle. The fastest of several rounds counts.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from rows import head, line
from torch import Tensor

from erasure_lightning.training.regression import Regression

TOKENS = 77
#: Width of the text states, and the number of maps by their outputs.
MODELS = {
    "SD 1.x": (768, {320: 10, 640: 10, 1280: 12}),
    "SDXL": (2048, {640: 20, 1280: 120}),
}
RIDGE = 0.5
#: Rows of one accumulation, about as many as the sentences of a few concepts have.
CHUNK = 4096


def pairs(rows: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random rows and their targets, in chunks."""
    for start in range(0, rows, CHUNK):
        generator = torch.Generator().manual_seed(start)
        yield torch.randn(2, min(CHUNK, rows - start), width, generator=generator).unbind()


def clock() -> float:
    """Processor time of one thread in seconds, or wall-clock time of several threads."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    """Duration of a call in seconds."""
    start = clock()
    work()
    return clock() - start


def gather_rows(rows: int, width: int) -> tuple[float, Regression]:
    """Seconds to accumulate rows into equations, and the equations."""
    equations = Regression(torch.zeros(width, width))
    spent = 0.0
    for keys, targets in pairs(rows, width):
        spent += seconds(lambda keys=keys, targets=targets: equations.redirect(keys, targets))
    return spent, equations


def map_by_map(weight: Tensor, rows: int) -> tuple[float, Tensor]:
    """Seconds for one map on its own, and the new map."""
    width = weight.shape[1]
    values = RIDGE * weight
    gram = RIDGE * torch.eye(width)
    spent = 0.0
    for keys, targets in pairs(rows, width):
        start = clock()
        values = values + (targets @ weight.T).T @ keys
        gram = gram + keys.T @ keys
        spent += clock() - start
    start = clock()
    new = values @ torch.inverse(gram)
    return spent + clock() - start, new


def gap(new: Tensor, exact: Tensor) -> float:
    """Relative difference of two maps."""
    return float((new.double() - exact).norm() / exact.norm())


def timed(equations: Regression, maps: list[Tensor]) -> float:
    """Seconds to solve for new maps; without maps, for the correction that they share."""
    return seconds(lambda: equations.solve(maps, RIDGE))


def product(width: int) -> float:
    """Seconds of a square matrix product."""
    a = torch.randn(width, width)
    return seconds(lambda: a @ a)


def operations(equations: Regression, outputs: int) -> float:
    """Operations of applying a correction: two slim products for few rows, else a square one."""
    width = len(equations.gram)
    inner = 2 * len(equations.keys) if equations.pull is None else width
    return 2 * outputs * width * inner


def compare(sizes: dict[int, int], width: int, rows: int, rounds: int) -> list[str]:
    """Cells of a row: gather, solve, apply, peak, error, map by map and its error."""
    maps = [
        torch.randn(out, width) / width**0.5 for out, count in sizes.items() for _ in range(count)
    ]
    gather, equations = gather_rows(rows, width)
    times = [(timed(equations, []), timed(equations, maps), product(width)) for _ in range(rounds)]
    # The least of each: other load of the machine only adds time.
    solve, both, once = map(min, zip(*times, strict=True))
    apply = both - solve
    peak = operations(equations, sum(map(len, maps))) / apply / (2 * width**3 / once)
    firsts = [next(weight for weight in maps if len(weight) == out) for out in sizes]
    exact = equations.solve([weight.double() for weight in firsts], RIDGE)
    ours = max(map(gap, equations.solve(firsts, RIDGE), exact))
    alone = [map_by_map(weight, rows) for weight in firsts]
    total = sum(spent * count for (spent, _), count in zip(alone, sizes.values(), strict=True))
    theirs = max(gap(new, one) for (_, new), one in zip(alone, exact, strict=True))
    took = [f"{gather:.2f}", f"{solve:.2f}", f"{apply:.2f}", f"{peak:.0%}", f"{ours:.0e}"]
    return [*took, f"{total:.1f}", f"{theirs:.0e}", f"{total / (gather + solve + apply):.0f}"]


def cases(concepts: Iterable[int], sentences: int) -> Iterator[tuple[str, int, int]]:
    """Kind of rows, concepts, and rows in all."""
    for count in concepts:
        yield from (("UCE-like", count, count), ("MACE-like", count, count * TOKENS * sentences))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--concepts", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--sentences", type=int, default=3, help="of a concept, MACE-like")
    parser.add_argument("--rounds", type=int, default=5, help="of which the fastest counts")
    parser.add_argument("--kinds", nargs="+", default=["UCE-like", "MACE-like"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compare({64: 1}, 768, 1, 1)  # loads each routine
    columns = ["gather, s", "solve, s", "apply, s", "peak", "error"]
    columns += ["map by map, s", "its error", "times"]
    print(head(["model", "rows", "concepts", "rows in all", *columns]))
    for model in args.models:
        width, sizes = MODELS[model]
        for kind, concepts, rows in cases(args.concepts, args.sentences):
            if kind not in args.kinds:
                continue
            figures = compare(sizes, width, rows, args.rounds)
            print(line([model, kind, str(concepts), str(rows), *figures]), flush=True)


if __name__ == "__main__":
    main()
