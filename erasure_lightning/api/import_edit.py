"""`import_edit`: a file of official code as an `Edit`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from safetensors import safe_open
from torch import Tensor, nn

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.lora_files import fuse_loras
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.edits.applied import Edit, load_edit
from erasure_lightning.edits.official import (
    OFFICIAL_LAYOUTS,
    OfficialLayout,
    concept_names,
    factor_changes,
    require_set,
    require_shapes_of,
)
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.safetensors_file import require_safetensors, tensor_shapes
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.runs.folder import Run
from erasure_lightning.training.imported import Imported

#: Name of a LoRA in a folder that diffusers wrote.
_LORA_FILE = "pytorch_lora_weights.safetensors"

#: The argument that names the output, for messages.
_OUT = "out (command line: --out)"

_Tensors = dict[str, Tensor]


def import_edit(
    file: str | Path,
    layout: str,
    backbone: str,
    out: str | Path,
    concepts: str | Concept | Sequence[str | Concept] = (),
) -> Edit:
    """Convert a file of official code into an edit that every command reads.

    Low-rank factors become the weights that they add up to with the model's own. SPM's act on every
    prompt: its gate is computed by its own inference code, and is in no file.

    Args:
        file: A safetensors file; of MACE the folder of the finished pipeline.
        layout: A name in `OFFICIAL_LAYOUTS`: ``esd``, ``uce``, ``speed``, ``mace``, ``spm``,
            ``leco`` or ``diffusers-lora``.
        backbone: Its base model, as `load_backbone` takes it.
        out: A file that ends in ``.safetensors``, or the folder of a run.
        concepts: The erased concepts; by default those in the file (ESD, SPM and LECO).

    Returns:
        The edit, which is written too.

    Raises:
        ErasureError: If the file is missing, a pickle, of another layout or of another model, or
            would change no weight, or if the output exists.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.torch import save_file
        >>> from erasure_lightning import import_edit
        >>> from erasure_lightning.backbones.tiny import TinyBackbone
        >>> official = TinyBackbone().denoiser.state_dict()
        >>> official = {n: w * 2 for n, w in official.items() if "attn2.to_v" in n}
        >>> with TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     TinyBackbone().save(folder / "model")
        ...     save_file(official, folder / "v.safetensors")
        ...     import_edit(
        ...         folder / "v.safetensors", "speed", str(folder / "model"),
        ...         folder / "edit.safetensors", ["cat"],
        ...     )
        Edit(Imported of cat, 4 tensors)
    """
    if layout not in OFFICIAL_LAYOUTS:
        raise ErasureError(
            f"import_edit needs one of {', '.join(OFFICIAL_LAYOUTS)} as layout (command line:"
            f" --as); found {layout!r}."
        )
    chosen = OFFICIAL_LAYOUTS[layout]
    target = _unused(Path(out))
    path = _existing(Path(file).expanduser(), chosen)
    tensors, header = ({}, {}) if chosen.kind == "pipeline" else _read(path)
    erased = _concepts(concepts, concept_names(chosen, path, header), path)
    model = load_backbone(backbone)
    values = _READERS[chosen.kind](chosen, path, tensors, model)
    parameters = sorted(map(model.component_name, values))
    module = Imported(parameters=parameters, code=chosen.code, concepts=erased, backbone=model)
    module.configure_model()
    _require_change(path, values, module.original)
    module.write(values)
    config = _config(module)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target != Path(out):
        write_atomically(Run(Path(out)).config, config.encode())
    module.save_edit(target, imported={"layout": layout, "file": path.name}, config=config)
    return load_edit(target)


def _unused(out: Path) -> Path:
    """The edit's file, which must not exist."""
    if out.suffix != ".safetensors" and not out.is_file():
        Run(out).check_unused(_OUT)
        return Run(out).edit
    if out.exists():
        raise ErasureError(f"{out} exists already, and is not overwritten. Choose another {_OUT}.")
    return out


def _existing(path: Path, layout: OfficialLayout) -> Path:
    """The file to read.

    Raises:
        ErasureError: If there is none, or it is a pickle.
    """
    if layout.kind == "lora" and path.is_dir():
        path = path / _LORA_FILE
    if layout.kind == "pipeline":
        if not path.is_dir():
            raise ErasureError(f"{path} needs to be the folder of a pipeline, final_save_path.")
        return path
    require_safetensors("file", path)
    return path


def _read(path: Path) -> tuple[_Tensors, dict[str, str]]:
    tensor_shapes(path)  # a damaged file is named there
    with safe_open(path, framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        return tensors, content.metadata() or {}


def _concepts(
    concepts: str | Concept | Sequence[str | Concept], own: Sequence[str], path: Path
) -> list[Concept]:
    names = [concepts] if isinstance(concepts, str | Concept) else concepts or own
    if not names:
        raise ErasureError(
            f"{path} does not name its concepts: give them as concepts (command line: --concepts)."
        )
    return [name if isinstance(name, Concept) else Concept(name) for name in names]


def _layers(model: Backbone) -> _Tensors:
    """Parameters of the denoiser's linear layers and convolutions."""
    return {
        f"{name}.{own}": parameter
        for name, layer in model.denoiser.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        for own, parameter in layer.named_parameters()
    }


def _in_backbone(values: _Tensors) -> _Tensors:
    return {f"denoiser.{name}": value.float() for name, value in values.items()}


def _weights(layout: OfficialLayout, path: Path, tensors: _Tensors, model: Backbone) -> _Tensors:
    layers = _layers(model)
    require_set(layout, path, tensors, layers)
    require_shapes_of(path, tensors, layers)
    return _in_backbone(tensors)


def _factors(layout: OfficialLayout, path: Path, tensors: _Tensors, model: Backbone) -> _Tensors:
    layers = {name: w for name, w in _layers(model).items() if name.endswith(".weight")}
    changes = factor_changes(path, tensors, layers)
    require_set(layout, path, changes, layers)
    merged = {name: layers[name] + change for name, change in changes.items()}
    require_shapes_of(path, merged, layers)
    return _in_backbone(merged)


def _pipeline(layout: OfficialLayout, path: Path, _: _Tensors, model: Backbone) -> _Tensors:
    other = dict(load_backbone(str(path)).named_parameters())
    own = dict(model.named_parameters())
    own_shapes, shapes = ({(n, p.shape) for n, p in each.items()} for each in (own, other))
    if differing := sorted(name for name, _ in own_shapes ^ shapes):
        raise ErasureError(
            f"{path} needs the components of {model.name}; found a difference in {differing[0]}."
            " Pass its base model as backbone."
        )
    changed = [name for name, p in other.items() if not torch.equal(p, own[name])]
    names = [name.removeprefix("denoiser.") for name in changed]
    require_set(layout, path, names, _layers(model))
    return {name: other[name].detach() for name in changed}


def _lora(_: OfficialLayout, path: Path, __: _Tensors, model: Backbone) -> _Tensors:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fuse_loras(model, [str(path)])
    parameters = dict(model.named_parameters())
    values = {n: p.detach().clone() for n, p in parameters.items() if not torch.equal(p, before[n])}
    for name in values:
        parameters[name].data.copy_(before[name])
    require_shapes_of(path, values, before)
    return values


_READERS: dict[str, Callable[[OfficialLayout, Path, _Tensors, Backbone], _Tensors]] = {
    "weights": _weights,
    "factors": _factors,
    "pipeline": _pipeline,
    "lora": _lora,
}


def _require_change(path: Path, values: _Tensors, original: Backbone) -> None:
    own = dict(original.named_parameters())
    if all(torch.equal(value, own[name]) for name, value in values.items()):
        raise ErasureError(
            f"An edit of {original.name} needs other weights; {path} has those of the model itself."
            " Pass the edited file, or its base model as backbone."
        )


def _config(module: Imported) -> str:
    """The config of a run of ``erasure test`` on the edit."""
    cls = type(module)
    own = module.arguments()
    arguments = {key: own[key] for key in ("parameters", "code", "concepts", "backbone")}
    model = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}
    return yaml.safe_dump({"model": model}, sort_keys=False, allow_unicode=True)
