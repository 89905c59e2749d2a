"""What a second process is worth: ``python benchmarks/ddp.py``.

ESD on the emoji world in one process of one thread, and by DDP in two of one thread each, in turns; a process trains
equally large batches either way. Samples per second of the steps behind the first few; a machine with fewer than two
idle cores has no second process to give.
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
    """Train, as one of the processes that torchrun started; the first prints samples a second of all."""
    import torch
    from lightning import Trainer
    from lightning.pytorch.callbacks import Callback

    from erasure_lightning.bank import TrajectoryBank
    from erasure_lightning.concepts import Concept
    from erasure_lightning.data import PromptData
    from erasure_lightning.methods.esd import ESD

    class Clock(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            if trainer.global_step == WARM:
                trainer.strategy.barrier()
                self.start = time.perf_counter()

        def on_train_end(self, trainer: Trainer, *_: object) -> None:
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                print(STEPS * BATCH * trainer.world_size / (time.perf_counter() - self.start))

    torch.set_num_threads(1)
    ranks = int(os.environ["WORLD_SIZE"])
    trainer = Trainer(
        max_steps=STEPS + WARM, accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, callbacks=[Clock()],
    )  # fmt: skip
    bank = TrajectoryBank(trajectories=4, steps=8)
    trainer.fit(ESD(concepts=[Concept("cigarette", "lollipop")], bank=bank), PromptData(batch_size=BATCH))


def speed(ranks: int) -> float:
    """Samples per second of so many processes."""
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ranks), __file__, "--timed"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timed", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.timed:
        timed()
        return
    pairs = [(speed(1), speed(2)) for _ in range(args.rounds)]
    one, two = (median(pair[i] for pair in pairs) for i in range(2))
    ratios = ", ".join(f"{pair[1] / pair[0]:.2f}" for pair in pairs)
    print(f"one process {one:.1f} samples/s, two {two:.1f}: {median(p[1] / p[0] for p in pairs):.2f} times ({ratios})")


if __name__ == "__main__":
    main()
