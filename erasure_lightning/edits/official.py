"""Layouts of the files of official code: their content, and the denoiser's names for it.

A layout lists sets of a denoiser's parameters, one for each training option of the code. A file
must hold exactly one of them; what is missing, unknown or of another shape is refused.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from erasure_lightning.edits.changes import LayerFactors
from erasure_lightning.errors import ErasureError

#: How a file's tensors become weights: they are weights by diffusers' names; low-rank factors by
#: Kohya's names; a pipeline's folder, whose denoiser is compared with the original; or a LoRA of
#: any layout that diffusers reads.
OfficialKind = Literal["weights", "factors", "pipeline", "lora"]


@dataclass(frozen=True)
class OfficialLayout:
    """The files of one official code.

    Args:
        code: Repository and commit.
        kind: How tensors become weights.
        sets: Training option -> expression for the parameters of linear layers and convolutions,
            by diffusers' names, that a file of it holds. Of ``factors`` it is for their weights.
        concept: Expression for the concept in a file's name, where the code puts it there.
    """

    code: str
    kind: OfficialKind
    sets: Mapping[str, str] = field(default_factory=dict)
    concept: str = ""


_KEYS_VALUES = r"attn2\.to_[kv]\.weight$"
_TRANSFORMERS = r"(^|\.)attentions\.\d+\."

#: By the value of ``erasure import --as``.
OFFICIAL_LAYOUTS: dict[str, OfficialLayout] = {
    # esd_sd.py, esd_sdxl.py, esd_flux.py: parameters of Linear and Conv2d, chosen by
    # --train_method; files of 25613d2 and before have the concept in their name alone.
    "esd": OfficialLayout(
        "rohitgandikota/erasing @ 2ff19a1",
        "weights",
        {
            "esd-x": "attn2",
            "esd-x-strict": r"attn2\.to_[kv]",
            "esd-u": r"^(?!.*attn2)",
            "esd-all": "",
            "selfattn": "attn1",
            "esd-u of SDXL": r"^(?!.*(attn2|emb)).*block",
            "esd-all of SDXL": r"^(?!.*emb).*block",
            "esd-x of FLUX": r"\.attn\.",
            "esd-x-strict of FLUX": r"\.attn\.to_[kv]\.",
        },
        concept=r"esd-(.+)-from-.+",
    ),
    # trainscripts/uce_sd_erase.py, uce_sd_debias.py, uce_flux_edit.py.
    "uce": OfficialLayout(
        "rohitgandikota/unified-concept-editing @ 28c81ed",
        "weights",
        {
            "Stable Diffusion": _KEYS_VALUES,
            "FLUX": r"(context_embedder|text_embedder\.linear_1)\.weight$",
        },
    ),
    # train_erase_null.py, --params; it writes a pickle of these names.
    "speed": OfficialLayout(
        "Ouxiang-Li/SPEED @ 6d3df0c",
        "weights",
        {"V": r"attn2\.to_v\.", "K": r"attn2\.to_k\.", "KV": r"attn2\.to_[kv]\."},
    ),
    # src/fuse_lora_close_form.py: the whole pipeline, at final_save_path.
    "mace": OfficialLayout("Shilin-LU/MACE @ 057e7a6", "pipeline", {"fused": _KEYS_VALUES}),
    # src/models/spm.py: every Linear and Conv2d of a Transformer2DModel.
    "spm": OfficialLayout("Con6924/SPM @ 3dd762e", "factors", {"default": _TRANSFORMERS}),
    # lora.py, and train_lora.py for the network's type; @ 00ac51f attention alone.
    "leco": OfficialLayout(
        "p1atdev/LECO @ a93cb46",
        "factors",
        {
            "lierla": _TRANSFORMERS,
            "c3lier": rf"{_TRANSFORMERS}|(resnets|downsamplers|upsamplers)\.\d+\.",
            "lierla @ 00ac51f": r"\.attn[12]\.",
        },
    ),
    "diffusers-lora": OfficialLayout("huggingface/diffusers", "lora"),
}

#: Names of Kohya's factors: the layer, with underscores for dots, and which factor.
_FACTOR = re.compile(r"lora_unet_(.+)\.(lora_down\.weight|lora_up\.weight|alpha)")


def require_set(
    layout: OfficialLayout, file: Path, names: Iterable[str], parameters: Iterable[str]
) -> None:
    """Raises unless a file's names are one of a layout's sets.

    Args:
        layout: The layout.
        file: The file, for messages.
        names: The file's, by the denoiser's names.
        parameters: Parameters of the denoiser's linear layers and convolutions.

    Raises:
        ErasureError: With what is missing or unexpected beside the set that is nearest.
    """
    actual = set(names)
    known = list(parameters)
    sets = {
        option: {name for name in known if re.search(pattern, name)}
        for option, pattern in layout.sets.items()
    }
    sets = {option: own for option, own in sets.items() if own}
    if actual in sets.values():
        return
    if not sets:
        raise ErasureError(
            f"{file} needs a model with the layers that {layout.code} edits; found one without."
            " Give its base model as backbone."
        )
    option = min(sets, key=lambda key: len(sets[key] ^ actual))
    kinds = {"missing": sets[option] - actual, "unknown": actual - sets[option]}
    differences = "; ".join(f"{len(v)} {kind} ({min(v)}, ...)" for kind, v in kinds.items() if v)
    raise ErasureError(
        f"{file} needs the {len(sets[option])} tensors that {layout.code} writes ({option});"
        f" found {differences}. Give its base model as backbone, and its code as"
        " layout (command line: --as)."
    )


def require_shapes_of(file: Path, values: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises unless values have the shapes of the denoiser's own, and are finite.

    Raises:
        ErasureError: With the first that has another shape, or NaN or infinity.
    """
    for name, value in values.items():
        if value.shape != own[name].shape:
            raise ErasureError(
                f"{file} needs {name} of shape {list(own[name].shape)}; found {list(value.shape)}."
                " It is of another base model: give that one as backbone."
            )
        if not value.isfinite().all():
            raise ErasureError(f"{file} needs finite values; found NaN or infinity in {name}.")


def factor_changes(
    file: Path, tensors: Mapping[str, Tensor], layers: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Changes of weights by a file's low-rank factors, ``alpha / r`` times their product.

    Args:
        file: The file, for messages.
        tensors: Its tensors.
        layers: The denoiser's weights of linear layers and convolutions, by name.

    Raises:
        ErasureError: If a name is no factor, one of the two is missing, or their shapes do not fit.
    """
    by_key = {name.removesuffix(".weight").replace(".", "_"): name for name in layers}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None or match[1] not in by_key:
            raise ErasureError(
                f"{file} needs low-rank factors of the denoiser's layers (lora_unet_...); found"
                f" {name}. It is of another base model, or by other code."
            )
        parts.setdefault(by_key[match[1]], {})[match[2]] = value
    changes = {}
    for name, part in parts.items():
        down = part.get("lora_down.weight")
        up = part.get("lora_up.weight")
        if down is None or up is None:
            raise ErasureError(f"{file} needs both factors of {name}; found one.")
        alpha = float(part["alpha"]) if "alpha" in part else float(len(down))
        weight = layers[name]
        product = (len(weight), len(down))
        if down.shape[1:] != weight.shape[1:] or up.flatten(1).shape != product:
            raise ErasureError(
                f"{file} needs factors of {name}, {list(weight.shape)}; found {list(up.shape)} and"
                f" {list(down.shape)}. It is of another base model: give that one as backbone."
            )
        changes[name] = LayerFactors(down, up).product() * (alpha / len(down))
    return changes


def concept_names(layout: OfficialLayout, file: Path, header: Mapping[str, str]) -> list[str]:
    """Concepts that a file names: in its metadata, ESD's of before 2026 in its name."""
    if concept := header.get("erase_concept"):
        return [concept]
    prompts = header.get("prompts", "")
    if targets := re.findall(r'"target"\s*:\s*"([^"]+)"', prompts):
        return list(dict.fromkeys(targets))
    if prompts:
        return [name.strip() for name in prompts.split(",") if name.strip()]
    match = re.fullmatch(layout.concept, file.stem) if layout.concept else None
    return [match[1].replace("_", " ")] if match else []
