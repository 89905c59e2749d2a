"""How long closed forms solve on matrices the size of Stable Diffusion 1.x: ``python benchmarks/closed_form.py``.

32 random maps (K and V of 16 cross-attention layers, 768 in, 320, 640 or 1280 out), against the straightforward way,
which builds and solves the equations anew for every map, in float32 as the official codes do. *UCE-like*: one token a
concept. *MACE-like*: all 77 tokens of a concept in every template. *gather* accumulates the rows into the equations,
*solve* is all that follows, to the 32 new matrices. A straightforward way that would take minutes is timed on one map
of each size and multiplied; ``~`` marks it.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from erasure_lightning.functional import Regression, corrected

WIDTH = 768
TOKENS = 77
#: Outputs of a map, and how many maps have so many.
SIZES = {320: 10, 640: 10, 1280: 12}
RIDGE = 0.5
#: Rows at a time; as many as a few concepts' sentences have.
CHUNK = 4096
#: Rows above which the straightforward way is timed on one map of each size.
MANY = 20000


def pairs(rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random rows and their images, as long as states of Stable Diffusion 1.x, a chunk at a time."""
    for start in range(0, rows, CHUNK):
        generator = torch.Generator().manual_seed(start)
        yield torch.randn(2, min(CHUNK, rows - start), WIDTH, generator=generator).unbind()


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ours(maps: list[Tensor], rows: int) -> tuple[float, float, list[Tensor]]:
    """Seconds of gathering and of solving, and the new maps."""
    equations, gather = Regression(torch.zeros(WIDTH, WIDTH)), 0.0
    for keys, images in pairs(rows):
        gather += seconds(lambda keys=keys, images=images: equations.redirect(keys, images))
    start = time.perf_counter()
    correction = equations.correction(RIDGE)
    new = [corrected(weight, correction) for weight in maps]
    return gather, time.perf_counter() - start, new


def straightforward(weight: Tensor, rows: int) -> tuple[float, Tensor]:
    """Seconds for one map on its own, and the new map."""
    values, gram, spent = RIDGE * weight, RIDGE * torch.eye(WIDTH), 0.0
    for keys, images in pairs(rows):
        start = time.perf_counter()
        values, gram = values + (images @ weight.T).T @ keys, gram + keys.T @ keys
        spent += time.perf_counter() - start
    start = time.perf_counter()
    new = values @ torch.inverse(gram)
    return spent + time.perf_counter() - start, new


def compare(maps: list[Tensor], name: str, concepts: int, rows: int) -> None:
    """Print a line."""
    gather, solve, new = ours(maps, rows)
    few = rows > MANY
    firsts = {w.shape[0]: i for i, w in reversed(list(enumerate(maps)))}
    timed = {i: straightforward(maps[i], rows) for i in (firsts.values() if few else range(len(maps)))}
    total = sum(timed[i][0] * (SIZES[len(maps[i])] if few else 1) for i in timed)
    gap = max((new[i] - timed[i][1]).norm() / new[i].norm() for i in timed)
    print(
        f"| {name} | {concepts} | {rows} | {gather:.2f} | {solve:.2f} | {'~' * few}{total:.1f} | "
        f"{total / (gather + solve):.0f} | {gap:.0e} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--templates", type=int, default=3, help="sentences a concept, MACE-like")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(out, WIDTH, generator=generator) / 28 for out, count in SIZES.items() for _ in range(count)]
    ours(maps, 1)  # the first call of each routine pays for its loading
    print("| rows | concepts | rows in all | gather, s | solve, s | straightforward, s | times | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for concepts in args.concepts:
        compare(maps, "UCE-like", concepts, concepts)
        compare(maps, "MACE-like", concepts, concepts * TOKENS * args.templates)


if __name__ == "__main__":
    main()
