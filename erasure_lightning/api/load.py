"""An edited model and its original from an edit file alone."""

from pathlib import Path
from typing import Any

from erasure_lightning.api.pipelines import Borrowed
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.edits.applied import Edit
from erasure_lightning.edits.base_edits import find_base_edits
from erasure_lightning.edits.edit import edit_title
from erasure_lightning.edits.format import required_entry
from erasure_lightning.errors import ErasureError
from erasure_lightning.registry import METHOD, known_offers, load_offer
from erasure_lightning.runs.folder import run_of
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.checkpoints import read_checkpoint
from erasure_lightning.training.composition import Composition
from erasure_lightning.training.edit_state import BACKBONE_PREFIX
from erasure_lightning.training.imported import Imported


def load_edited(path: Path, backbone: str | None = None) -> ErasureModule:
    """The module that made an edit, with the edited model and its original.

    A file does not decide which code runs: its method must be one of ours or of an installed
    plugin. Arguments that were objects (a bank of trajectories) are left at their defaults;
    training needs them, an edit does not.

    Args:
        path: An ``edit.safetensors`` or a ``.ckpt``, as `locate_checkpoint` returns it.
        backbone: Where the base model is now; by default as the edit names it.

    Raises:
        ErasureError: If the file cannot be read, its method is not installed or takes other
            arguments by now, or the edit is another base model's.
    """
    checkpoint = read_checkpoint(path)
    metadata = checkpoint["erasure"]
    if backbone:
        metadata = metadata | {"backbone": backbone}
    if entries := metadata.get("base_edits"):
        files = find_base_edits(entries, run_of(path).edit, edit_title(metadata))
        metadata = metadata | {
            "arguments": metadata["arguments"] | {"base_edit": [*map(str, files)]}
        }
    return _filled(_empty_module(str(path), metadata), checkpoint | {"erasure": metadata})


def edited_module(edit: Edit, borrowed: Borrowed) -> ErasureModule:
    """The module of an edit on a pipeline's backbone, whose values it may change.

    Args:
        edit: The edit.
        borrowed: The pipeline, which does not hold the edit, but those that it is based on.

    Raises:
        ErasureError: As for `load_edited`.
    """
    names = {BACKBONE_PREFIX + name: value for name, value in edit.tensors.items()}
    checkpoint = {"state_dict": names, "erasure": edit.metadata}
    module = _empty_module(repr(edit), edit.metadata, borrowed.backbone)
    module.configure_model()
    borrowed.protect(module.editable().values())
    return _filled(module, checkpoint)


def _empty_module(
    title: str, metadata: dict[str, Any], backbone: Backbone | None = None
) -> ErasureModule:
    """The module that made an edit, before the edit is in it.

    Args:
        title: Name of the edit, for errors.
        metadata: Its metadata.
        backbone: The model; by default the one that the metadata names.

    Raises:
        ErasureError: If the method is not installed or takes other arguments by now.
    """
    method = _method(title, str(metadata.get("method")))
    arguments = _arguments(metadata)
    if backbone is not None:  # which has the edits beneath and the LoRAs already
        arguments |= {"backbone": backbone, "base_edit": None, "loras": None}
        if arguments.get("base_dtype") == "int8":  # which would round the caller's weights
            arguments["base_dtype"] = "bfloat16"
    try:
        return method(**arguments)
    except (TypeError, KeyError) as error:
        versions = [f"{name} {version}" for name, version in metadata.get("versions", {}).items()]
        raise ErasureError(
            f"{title} was made with arguments that {method.__name__} does not take here ({error})."
            f" It was made with: {', '.join(versions) or 'unknown'}."
        ) from error


def _filled(module: ErasureModule, checkpoint: dict[str, Any]) -> ErasureModule:
    """A module with a checkpoint's edit in its backbone.

    Raises:
        ErasureError: If the edit is another base model's.
    """
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    return module.requires_grad_(False).eval()


def _method(title: str, name: str) -> type[ErasureModule]:
    for own in (Composition, Imported):
        if name == f"{own.__module__}.{own.__qualname__}":
            return own
    for offered in known_offers(METHOD):
        if offered.name == name.rpartition(".")[2]:
            method: type[ErasureModule] = load_offer(offered)
            if f"{method.__module__}.{method.__qualname__}" == name:
                return method
    raise ErasureError(
        f"{title} was made by the method {name}, which no installed package offers (`erasure"
        " methods` lists all). Install its package."
    )


def _arguments(metadata: dict[str, Any]) -> dict[str, Any]:
    arguments = required_entry(metadata, "arguments")
    plain = {key: value for key, value in arguments.items() if not _opaque(value)}
    concepts = [Concept(**concept) for concept in required_entry(metadata, "concepts")]
    return plain | {"concepts": concepts, "backbone": required_entry(metadata, "backbone")}


def _opaque(value: Any) -> bool:
    """Whether an argument was an object: of Python its repr, of a config its class."""
    if isinstance(value, dict):
        return "class_path" in value
    return isinstance(value, str) and value.startswith("<")
