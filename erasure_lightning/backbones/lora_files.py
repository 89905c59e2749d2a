"""LoRA files, fused into a backbone through diffusers before anything is erased."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasure_lightning.adapters.lora import lora_layers
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.checks import require
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.quiet_libraries import quiet_libraries
from erasure_lightning.files.safetensors_file import require_safetensors, tensor_shapes

#: What names of a LoRA's first factors hold: Kohya's, diffusers' older ones, and peft's.
_DOWN = (".lora_down.", ".lora.down.", "_lora.down.", ".lora_A.")


def fuse_loras(backbone: Backbone, loras: Sequence[str]) -> None:
    """Adds LoRAs to a backbone's weights, in order, as ``load_lora_weights`` and ``fuse_lora`` do.

    Args:
        backbone: The model, whose weights are written.
        loras: Files, ``FILE.safetensors``, or ``FILE.safetensors:WEIGHT``; the weight is 1 by
            default.

    Raises:
        ErasureError: If a file is missing, no LoRA, one of another family, or a pickle.
    """
    if not loras:
        return
    files = [_parse(entry) for entry in loras]
    pipeline = backbone.to_pipeline()
    if not hasattr(pipeline, "load_lora_weights"):
        raise ErasureError(
            "loras needs a pipeline that takes LoRAs; found"
            f" {type(pipeline).__name__}, which has no load_lora_weights."
        )
    with quiet_libraries():
        for file, weight in files:
            _fuse(backbone, pipeline, file, weight)
    backbone.requires_grad_(False).eval()


def _parse(entry: str) -> tuple[Path, float]:
    """File and weight of an entry.

    Raises:
        ErasureError: If the file is none that can be read, or the weight is not finite.
    """
    name, _, text = entry.rpartition(":")
    try:
        file, weight = (Path(name), float(text)) if name else (Path(text), 1.0)
    except ValueError:  # a colon of the path
        file = Path(entry)
        weight = 1.0
    require(f"The LoRA {file}", weight=weight)
    file = file.expanduser()
    require_safetensors("LoRA", file)
    if not any(mark in key for key in tensor_shapes(file) for mark in _DOWN):
        raise ErasureError(
            f"The LoRA {file} needs low-rank factors (lora_down, lora_A); found none."
        )
    return file, weight


def _fuse(backbone: Backbone, pipeline: Any, file: Path, weight: float) -> None:
    """Loads one LoRA, fuses it and removes its adapters."""
    try:
        pipeline.load_lora_weights(str(file), adapter_name="fused", local_files_only=True)
        state = pipeline.lora_state_dict(str(file), local_files_only=True)
    except Exception as error:  # the libraries document no error classes
        raise _unfit(backbone, pipeline, file, _reason(error)) from error
    names = state[0] if isinstance(state, tuple) else state
    stored = sum(any(mark in name for mark in _DOWN) for name in names)
    matched = len(lora_layers(backbone))
    if not matched or matched < stored:
        raise _unfit(backbone, pipeline, file, f"{matched} of its {stored} layers")
    # By default FLUX's leaves its text encoder out, whose layers would be lost with the adapters.
    pipeline.fuse_lora(components=pipeline._lora_loadable_modules, lora_scale=weight)
    pipeline.unload_lora_weights()


def _unfit(backbone: Backbone, pipeline: Any, file: Path, cause: str) -> ErasureError:
    return ErasureError(
        f"The LoRA {file} needs the layers of {backbone.name} ({type(pipeline).__name__}); found"
        f" {cause}. It was made for another model, or is none that diffusers reads."
    )


def _reason(error: Exception) -> str:
    """The line of an error that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    mismatch = next(
        (line for line in lines if "size mismatch" in line), (lines or ["no reason"])[0]
    )
    return mismatch if len(mismatch) < 200 else f"{mismatch[:197]}..."
