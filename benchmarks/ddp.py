"""Speed-up by a second process: ``python benchmarks/ddp.py``.

ESD on the emoji world in one process of one thread, and by DDP in two of one thread each, in turns;
each process trains batches of one size. Samples per second after the first few steps. Two
independent processes show the most that the machine allows: cores share caches and memory, and
perhaps a processor.
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

#: Timed steps, steps before them, and latents of each step and process.
STEPS = 30
WARM = 5
BATCH = 16


def timed() -> None:
    """Train in one of torchrun's processes; the first prints the samples per second of all."""
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
        max_steps=STEPS + WARM,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[Clock()],
    )
    bank = TrajectoryBank(trajectories=4, steps=8)
    module = ESD(backbone="emoji-world", concepts=[Concept("cigarette", "lollipop")], latents=bank)
    trainer.fit(module, PromptData(batch_size=BATCH))


def speed(ranks: int, runs: int = 1) -> float:
    """Samples per second in all.

    Args:
        ranks: Processes of each run.
        runs: Independent runs at the same time.
    """
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", str(ranks), __file__, "--timed"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        for _ in range(runs)
    ]
    outputs = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(outputs[0][1])
    return sum(float(output.split()[-1]) for output, _ in outputs)


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timed", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.timed:
        timed()
        return
    rounds = [(speed(1), speed(2), speed(1, runs=2)) for _ in range(args.rounds)]
    one, two, apart = (median(row[i] for row in rounds) for i in range(3))
    by_ddp = median(row[1] / row[0] for row in rounds)
    by_two = median(row[2] / row[0] for row in rounds)
    print(f"one process {one:.1f} samples/s; two by DDP {two:.1f}, {by_ddp:.2f} times;")
    print(f"two apart {apart:.1f}, {by_two:.2f} times: DDP gives {two / apart:.2f} of that")


if __name__ == "__main__":
    main()
