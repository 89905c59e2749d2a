"""All-gathers of FSDP2 in a step: ``torchrun --nproc-per-node 2 benchmarks/gathers.py``.

*units*: groups of weights that are gathered together, of student and original; *all-gathers*: in
the second of two steps, on the tiny model of each family.
"""

import argparse
import logging
import warnings
from typing import Any

from lightning.pytorch.callbacks import Callback
from rows import head, line
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.profiler import ProfilerActivity, profile

from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinySD3, TinyXL
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.distributed.fsdp import joint_units
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.mace import MACE
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.testing import quick_fit
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.strategies import FSDP2
from erasure_lightning.training.trajectory_bank import TrajectoryBank

BANK = {"latents": TrajectoryBank(trajectories=2, steps=2)}
IMAGES = {"latents": GeneratedImages(images=1, steps=2)}

CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "SD 1.x, ESD train x": (TinyBackbone, ESD, {"train": "x", **BANK}),
    "SD 1.x, ESD train all": (TinyBackbone, ESD, {"train": "all", **BANK}),
    "SD 1.x, SAGE": (TinyBackbone, SAGE, {}),
    "SD 1.x, MACE": (TinyBackbone, MACE, IMAGES),
    "SDXL, ESD": (TinyXL, ESD, BANK),
    "SD 3, ESD": (TinySD3, ESD, BANK),
    "FLUX.1, ESD": (TinyFlux, ESD, BANK),
    "FLUX.1, MACE": (TinyFlux, MACE, IMAGES),
}


class SecondStep(Callback):
    """Counts the all-gathers of the second step."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Start to record."""
        if trainer.global_step == 1:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.start()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Stop, and count."""
        if trainer.global_step == 2:
            self.profiler.stop()
            names = [event.name for event in self.profiler.events()]
            self.count = sum(name == "c10d::_allgather_base_" for name in names)


def units(module: ErasureModule) -> int:
    """Groups of weights that are gathered together."""
    parts = (*module.modules(), *joint_units(module))
    return len({id(part) for part in parts if isinstance(part, FSDPModule)})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = [head(["", "units", "all-gathers"])]
    for title, (family, method, arguments) in CASES.items():
        module = method(concepts=[Concept("cat", "dog")], backbone=family(), seed=1, **arguments)
        second = SecondStep()
        quick_fit(module, 2, second, devices=2, strategy=FSDP2())
        rows.append(line([title, str(units(module)), str(second.count)]))
    if distributed.get_rank() == 0:
        print("\n".join(rows))


if __name__ == "__main__":
    main()
