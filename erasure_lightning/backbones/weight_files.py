"""Weight files of a component: their choice, and a check of their tensors by headers alone."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from erasure_lightning.backbones.sources import read_json
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.safetensors_file import meta_tensors, tensor_shapes

#: Names of weight files, without suffix, by library.
WEIGHT_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}

#: Variants that are the same weights in some precision, best first; "" is the file without one.
_PRECISIONS = ("", "fp32", "fp16", "bf16")

#: Tensors of CLIP's other half, which published text encoders hold and stock pipelines ignore.
_REST_OF_CLIP = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")

_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}


@dataclass(frozen=True)
class StoredWeights:
    """A component's weight files.

    Args:
        files: Paths, one per shard.
        variant: The ``variant`` argument of diffusers and transformers.
        sharded: Whether an index lists the files.
    """

    files: tuple[Path, ...]
    variant: str | None
    sharded: bool

    def empty_tensors(self) -> dict[str, torch.Tensor]:
        """The stored tensors by name, on the meta device.

        Raises:
            ErasureError: If a file is truncated, damaged, or a pointer of Git LFS.
        """
        shapes = {name: shape for file in self.files for name, shape in tensor_shapes(file).items()}
        return meta_tensors(shapes)


def _by_variant(names: Iterable[str], stem: str) -> dict[str, list[str]]:
    """File names of weights and of their indices, by variant; "" is none."""
    shard = r"(?:-\d+-of-\d+)?"
    weights = re.compile(rf"{stem}{shard}(?:\.(\w+?))?{shard}\.safetensors")
    index = re.compile(rf"{stem}\.safetensors\.index(?:\.(\w+))?\.json")
    files: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        if match := weights.fullmatch(name) or index.fullmatch(name):
            files[match[1] or ""].append(name)
    return files


def preferred_variant(names: Iterable[str], stem: str) -> tuple[str, list[str]] | None:
    """The variant to read, with its files: the first of `_PRECISIONS`."""
    files = _by_variant(names, stem)
    return next(((variant, files[variant]) for variant in _PRECISIONS if variant in files), None)


def find_weights(folder: Path, library: str) -> StoredWeights:
    """The weight files of a component that its library will read.

    Raises:
        ErasureError: If they are missing, incomplete, or not safetensors.
    """
    names = sorted(p.name for p in folder.iterdir())
    best = preferred_variant(names, WEIGHT_STEMS[library])
    if best is None:
        raise _no_weights(folder, names, WEIGHT_STEMS[library])
    variant, own = best
    indices = [name for name in own if name.endswith(".json")]
    whole = [name for name in own if not re.search(r"-\d+-of-\d+", name) and name not in indices]
    if indices and (library == "diffusers" or not whole):
        files = set(read_json(folder / indices[0]).get("weight_map", {}).values())
    else:
        files = set(whole)
    if not files or (missing := sorted(files - set(names))):
        actual = f"no {missing[0]}" if files else f"{own[0]} without an index"
        raise ErasureError(
            f"{folder} needs all shards of its weights; found {actual}. Download it again."
        )
    paths = tuple(folder / name for name in sorted(files))
    return StoredWeights(paths, variant or None, sharded=files != set(whole))


def _no_weights(folder: Path, names: Collection[str], stem: str) -> ErasureError:
    weights = [name for name in names if Path(name).suffix in _PICKLES | {".safetensors"}]
    formats = ", ".join(weights) or "none"
    start = f"{folder} needs weights as safetensors; found {formats}."
    if any(name.endswith(".safetensors") for name in weights):
        return ErasureError(f"{start} Rename what is to be read to {stem}.safetensors.")
    if not weights:
        return ErasureError(f"{start} {stem}.safetensors is missing: download it again.")
    return ErasureError(
        f"{start} Pickles can run code and are not read: load it once where you trust it, and write"
        " it with pipeline.save_pretrained(folder)."
    )


def require_tensors(
    title: str,
    model: Any,
    empty: dict[str, torch.Tensor],
    sharded: bool = False,
    unused: Collection[str] = (),
) -> None:
    """Compares tensors on the meta device with a model's, after the libraries rename old names.

    Args:
        title: Component and folder, for messages.
        model: A model of diffusers or transformers on the meta device.
        empty: The tensors.
        sharded: Whether they are of several files, in which diffusers renames none.
        unused: Names of further tensors, which have no place in the model.

    Raises:
        ErasureError: If tensors are missing, unexpected or of another shape.
    """
    compare = _diffusers if hasattr(model, "_fix_state_dict_keys_on_load") else _transformers
    missing, unexpected, misshaped = compare(model, empty, sharded)
    unexpected += unused
    if not (missing or unexpected or misshaped):
        return
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    differences = "; ".join(f"{len(v)} {kind} ({_some(v)})" for kind, v in kinds.items() if v)
    cure = (
        "Its config.json belongs to other weights, or the file is incomplete: take both from one"
        " place."
    )
    if any("lora" in name for name in unexpected):
        cure = (
            "It was saved with LoRA layers inside: call fuse_lora() and unload_lora_weights()"
            " before save_pretrained."
        )
    raise ErasureError(
        f"The {title} needs the tensors that its config describes; found {differences}. {cure}"
    )


def _some(names: Collection[str]) -> str:
    first, *others = sorted(names)
    return f"{first}, ..." if others else first


_Differences = tuple[list[str], list[str], list[str]]


def _diffusers(model: Any, empty: dict[str, torch.Tensor], sharded: bool) -> _Differences:
    if not sharded:  # diffusers does not rename in shards either
        model._fix_state_dict_keys_on_load(empty)
    expected = model.state_dict()
    common = expected.keys() & empty.keys()
    misshaped = [
        _mismatch(name, empty[name].shape, expected[name].shape)
        for name in common
        if empty[name].shape != expected[name].shape
    ]
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    unexpected = [
        name
        for name in empty.keys() - expected.keys()
        if not any(re.search(pattern, name) for pattern in ignored)
    ]
    return list(expected.keys() - empty.keys()), unexpected, misshaped


def _transformers(model: Any, empty: Mapping[str, torch.Tensor], sharded: bool) -> _Differences:
    _, info = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=dict(empty),
        device_map="meta",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    unexpected = [name for name in info["unexpected_keys"] if not name.startswith(_REST_OF_CLIP)]
    misshaped = [_mismatch(*row) for row in info["mismatched_keys"]]
    return list(info["missing_keys"]), unexpected, misshaped


def _mismatch(name: str, stored: Collection[int], expected: Collection[int]) -> str:
    return f"{name}: {list(stored)} stored, {list(expected)} by the config"
