"""How long closed forms solve on matrices of real sizes: ``python benchmarks/closed_form.py``.

Random maps as many and as large as the keys and values of every cross-attention of Stable Diffusion
1.x and SDXL, in float32. *UCE-like*: one token a concept. *MACE-like*: all 77 tokens of a concept
in every sentence. *gather* accumulates the rows into the equations; *solve* is all that is solved
for, the correction that all maps share; *apply* makes every map anew. *peak* is the share of the
machine's speed (of a square matrix product timed in turns with it) at which that ran. *error* is
the largest relative difference from the same solved and applied in float64. *map by map* is the
straightforward way, as the official codes go it: equations built and solved for every map on its
own, in float32; timed on one map of each size and multiplied, and its own error beside it. All in
seconds of the processor on one thread, which other work on the machine does not add to; with
``--threads 2`` in seconds of the clock, for which the machine must be idle. Of several rounds the
fastest counts.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from rows import head, line
from torch import Tensor

from erasure_lightning.training.regression import Regression

TOKENS = 77
#: Width of the text states, and how many maps have so many outputs.
MODELS = {
    "SD 1.x": (768, {320: 10, 640: 10, 1280: 12}),
    "SDXL": (2048, {640: 20, 1280: 120}),
}
RIDGE = 0.5
#: Rows at a time; as many as a few concepts' sentences have.
CHUNK = 4096


def pairs(rows: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random rows and their images, a chunk at a time."""
    for start in range(0, rows, CHUNK):
        generator = torch.Generator().manual_seed(start)
        yield torch.randn(2, min(CHUNK, rows - start), width, generator=generator).unbind()


def clock() -> float:
    """Seconds that the one thread has worked, or that have passed where several work."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = clock()
    work()
    return clock() - start


def gathered(rows: int, width: int) -> tuple[float, Regression]:
    """Seconds of writing rows into equations, and the equations."""
    equations, spent = Regression(torch.zeros(width, width)), 0.0
    for keys, images in pairs(rows, width):
        spent += seconds(lambda keys=keys, images=images: equations.redirect(keys, images))
    return spent, equations


def map_by_map(weight: Tensor, rows: int) -> tuple[float, Tensor]:
    """Seconds for one map on its own, and the new map."""
    width = weight.shape[1]
    values, gram, spent = RIDGE * weight, RIDGE * torch.eye(width), 0.0
    for keys, images in pairs(rows, width):
        start = clock()
        values, gram = values + (images @ weight.T).T @ keys, gram + keys.T @ keys
        spent += clock() - start
    start = clock()
    new = values @ torch.inverse(gram)
    return spent + clock() - start, new


def gap(new: Tensor, exact: Tensor) -> float:
    """Relative difference of two maps."""
    return float((new.double() - exact).norm() / exact.norm())


def timed(equations: Regression, maps: list[Tensor]) -> float:
    """Seconds of solving for new maps; without any, of solving for what they share."""
    return seconds(lambda: equations.solve(maps, RIDGE))


def product(width: int) -> float:
    """Seconds of a square matrix product."""
    a = torch.randn(width, width)
    return seconds(lambda: a @ a)


def operations(equations: Regression, outputs: int) -> float:
    """What applying costs: two slim products for few rows, else a square one."""
    width = len(equations.gram)
    inner = 2 * len(equations.keys) if equations.pull is None else width
    return 2 * outputs * width * inner


def compare(sizes: dict[int, int], width: int, rows: int, rounds: int) -> list[str]:
    """Cells of a row: gather, solve, apply, peak, error, map by map and its error."""
    maps = [
        torch.randn(out, width) / width**0.5 for out, count in sizes.items() for _ in range(count)
    ]
    gather, equations = gathered(rows, width)
    times = [(timed(equations, []), timed(equations, maps), product(width)) for _ in range(rounds)]
    solve, both, once = map(
        min, zip(*times, strict=True)
    )  # whatever else the machine does only ever adds
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
    compare({64: 1}, 768, 1, 1)  # the first call of each routine pays for its loading
    columns = (
        "gather, s",
        "solve, s",
        "apply, s",
        "peak",
        "error",
        "map by map, s",
        "its error",
        "times",
    )
    print(head(["model", "rows", "concepts", "rows in all", *columns]))
    for model in args.models:
        width, sizes = MODELS[model]
        for kind, concepts, rows in cases(args.concepts, args.sentences):
            if kind not in args.kinds:
                continue
            print(
                line(
                    [
                        model,
                        kind,
                        str(concepts),
                        str(rows),
                        *compare(sizes, width, rows, args.rounds),
                    ]
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
