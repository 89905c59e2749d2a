"""Weights on each of two ranks: ``torchrun --nproc-per-node 2 benchmarks/shares.py``.

Weights of student and original together, on the emoji world after one step, by DDP and by FSDP2,
beside the forecast of `erasure plan`. Peaks are not measured here: FSDP2 frees the storage of
gathered weights in place, which a tracker of tensors cannot see.
"""

import argparse
import logging
import warnings
from typing import Any

from lightning import Trainer
from rows import head, line
from torch import distributed
from torch.distributed.tensor import DTensor

from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.planning.device_memory import DeviceMemory
from erasure_lightning.planning.forecast import forecast_fit
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.strategies import FSDP2

CASES = [(ESD, {"train": "all"}), (ESD, {"train": "x"}), (SAGE, {"blocks": 2})]
WEIGHTS = ("frozen weights", "the original's own copies", "what is edited")


def make_module(method: type[ErasureModule], arguments: dict[str, Any]) -> ErasureModule:
    """The method on the emoji world."""
    return method(concepts=[Concept("cigarette", "lollipop")], backbone="emoji-world", **arguments)


def held(module: ErasureModule, strategy: Any) -> float:
    """MiB of weights on this rank, after a step."""
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, PromptData(batch_size=1))
    local = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
    return sum(p.nbytes for p in local) / 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = [head(["MiB on each rank", "ddp", "fsdp2", "ddp, planned", "fsdp2, planned"])]
    for method, arguments in CASES:
        measured = [held(make_module(method, arguments), strategy) for strategy in ("ddp", FSDP2())]
        plan = forecast_fit(
            make_module(method, arguments), PromptData(batch_size=1), [], measure=False, max_steps=1
        )
        needs = [DeviceMemory(plan, 2, strategy).rows for strategy in ("ddp", "fsdp2")]
        planned = [sum(rows[name] for name in WEIGHTS) / 2**20 for rows in needs]
        options = ", ".join(f"{key} {value}" for key, value in arguments.items())
        name = f"{method.__name__} {options}".strip()
        rows.append(line([name, *(f"{value:.1f}" for value in (*measured, *planned))]))
    if distributed.get_rank() == 0:
        print("\n".join(rows))


if __name__ == "__main__":
    main()
