"""The memory of each of several devices, out of a forecast of one, and advice where it is short."""

from typing import Any

from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.planning.forecast import FitForecast
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.trajectory_bank import TrajectoryBank


class DeviceMemory:
    """What each device of a fit holds, and its peaks, in bytes.

    Args:
        forecast: The forecast, of one device.
        devices: How many.
        strategy: ``ddp``, ``fsdp2``, or ``one device``.
    """

    def __init__(self, forecast: FitForecast, devices: int, strategy: str) -> None:
        share = devices if strategy == "fsdp2" else 1
        own = share if forecast.held.splits else 1
        self.devices = devices
        self.strategy = strategy
        weights = forecast.held.weights
        held = {
            "frozen weights": weights.frozen - weights.divisible + weights.divisible // share,
            "the original's own copies": weights.teacher // own,
            "what is edited": weights.edit // own,
            "bank": forecast.held.bank,
            "copies between devices": weights.unit if share > 1 else 0,
        }
        trained = {
            "its gradients": forecast.held.gradients // own,
            "its optimizer": forecast.held.state // own,
        }
        self.rows = held | trained
        fixed = weights.frozen + weights.teacher + weights.edit + forecast.held.bank
        more = sum(held.values()) - fixed
        late = more + sum(trained.values()) - forecast.held.gradients - forecast.held.state
        # DDP allocates the gradients, which are views of its buckets, before the first step.
        early = more + (forecast.held.gradients if devices > share else 0)
        self.whens = {
            name: peak + (early if name in ("preparing", "sampling") else late)
            for name, peak in forecast.peaks.items()
            if peak
        }
        if share == 1:  # a denoiser in shares stays on its devices
            self.whens["preparing"] -= weights.exchanged
        self.when = max(self.whens, key=lambda name: self.whens[name])
        self.peak = self.whens[self.when]
        self.activations = max(
            forecast.peaks["step"] - fixed - forecast.held.gradients - forecast.held.state, 0
        )

    def plain(self) -> dict[str, Any]:
        """The values for JSON."""
        return {
            "devices": self.devices,
            "strategy": self.strategy,
            "per_device": self.rows,
            "activations": self.activations,
            "peak_when": self.when,
            "peaks_per_device": self.whens,
            "peak": self.peak,
        }


def memory_advice(
    forecast: FitForecast,
    memory: DeviceMemory,
    module: ErasureModule,
    data: PromptData,
    devices_per_node: int,
) -> list[str]:
    """Options that need less memory, in the order of what they are likely to save.

    Args:
        forecast: The forecast, of one device.
        memory: The same on the devices it is planned for.
        module: The method.
        data: Its prompts.
        devices_per_node: Devices of each node.
    """
    is_split = memory.strategy == "fsdp2"
    has_adam = getattr(module, "optimizer", "") == "adam"
    devices = devices_per_node if memory.devices > 1 else 2
    options = [
        *_activation_options(memory, module, data),
        (
            not is_split and forecast.held.splits,
            f"--trainer.strategy fsdp2 --trainer.devices {devices} splits weights, edit and"
            " optimizer.",
        ),
        (
            not is_split and has_adam and forecast.held.state > forecast.held.gradients,
            "--model.optimizer adam8bit quarters the optimizer's state (needs bitsandbytes).",
        ),
    ]
    return [sentence for applies, sentence in options if applies]


def _need_most(memory: DeviceMemory, module: ErasureModule, data: PromptData) -> str:
    """What has the highest peak outside of a step, and what lowers it; empty if unknown."""
    bank = getattr(module, "latents", None)
    match memory.when:
        case "measuring":
            fewer = max(data.image_batch_size // 4, 1)
            return (
                f"Measuring needs most: --data.image_batch_size {fewer} (now"
                f" {data.image_batch_size})."
            )
        case "monitoring":
            return "RetentionMonitor needs most: give it fewer prompts, or a smaller count."
        case "sampling" if isinstance(bank, TrajectoryBank):
            return f"Rolling the bank out needs most: give it a batch_size below {bank.batch_size}."
    return ""


def _activation_options(
    memory: DeviceMemory, module: ErasureModule, data: PromptData
) -> list[tuple[bool, str]]:
    """Options for fewer activations: whether each applies, and its sentence."""
    in_step = memory.when == "step"
    need = _need_most(memory, module, data)
    return [
        (bool(need), need),
        (
            in_step and not module.checkpointing,
            "--model.checkpointing true keeps fewer activations, and takes about a third longer.",
        ),
        (
            module.base_dtype == "float32",
            "--model.base_dtype bfloat16 halves the frozen weights and most activations.",
        ),
        (
            module.base_dtype == "bfloat16" and memory.strategy != "fsdp2",
            "--model.base_dtype int8 stores frozen layers of the denoiser in 8 bits.",
        ),
        (
            in_step and data.batch_size > 1,
            f"--data.batch_size {data.batch_size // 2} halves the activations (now"
            f" {data.batch_size}).",
        ),
    ]
