"""What a second process is worth: ``python benchmarks/ddp.py``.

ESD on the emoji world in one process of one thread, and by DDP in two of one thread each, in turns;
a process trains equally large batches either way. Samples per second of the steps behind the first
few. Two processes that know nothing of each other say what the machine has to give: cores share
caches and memory, and perhaps a processor.
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

#: Steps that are timed, those before them that are not, and latents of a step in each process.
STEPS, WARM, BATCH = 30, 5, 16


def timed() -> None:
    """Train, as one of the processes that torchrun started; the first prints samples a second of
    all.
    """
    import torch
    from lightning import Trainer
    from lightning.pytorch.callbacks import Callback

    from erasure_lightning.concepts.concept import Concept
    from erasure_lightning.data.datamodule import PromptData
    from erasure_lightning.methods.esd import ESD
    from erasure_lightning.training.strategies import register_strategies
    from erasure_lightning.training.trajectory_bank import TrajectoryBank

    class Clock(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            if trainer.global_step == WARM:
                trainer.strategy.barrier()
                self.start = time.perf_counter()

        def on_train_end(self, trainer: Trainer, *_: object) -> None:
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                print(STEPS * BATCH * trainer.world_size / (time.perf_counter() - self.start))

    register_strategies()
    torch.set_num_threads(1)
    ranks = int(os.environ["WORLD_SIZE"])
    trainer = Trainer(
        max_steps=STEPS + WARM, accelerator="cpu", devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, callbacks=[Clock()],
    )  # fmt: skip
    bank = TrajectoryBank(trajectories=4, steps=8)
    trainer.fit(
        ESD(concepts=[Concept("cigarette", "lollipop")], latents=bank), PromptData(batch_size=BATCH)
    )


def speed(ranks: int, runs: int = 1) -> float:
    """Samples per second of so many processes, of so many runs side by side."""
    launcher = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ranks), __file__, "--timed"]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        for _ in range(runs)
    ]
    told = [run.communicate() for run in started]
    if any(run.returncode for run in started):
        raise SystemExit(told[0][1])
    return sum(float(said.split()[-1]) for said, _ in told)


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timed", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.timed:
        timed()
        return
    found = [(speed(1), speed(2), speed(1, runs=2)) for _ in range(args.rounds)]
    one, two, apart = (median(row[i] for row in found) for i in range(3))
    print(
        f"one process {one:.1f} samples/s; two by DDP {two:.1f},"
        f" {median(r[1] / r[0] for r in found):.2f} times;"
    )
    print(
        f"two apart {apart:.1f}, {median(r[2] / r[0] for r in found):.2f} times: DDP gives"
        f" {two / apart:.2f} of that"
    )


if __name__ == "__main__":
    main()
