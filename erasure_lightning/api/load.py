"""An edited model and its original out of an edit file alone."""

from pathlib import Path
from typing import Any

from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.registry import known_methods, load_method
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.checkpoints import read_checkpoint


def load_edited(path: Path) -> ErasureModule:
    """The module that made an edit, with the edit in its ``backbone`` and the untouched model in
    its ``original``.

    A file does not decide which code runs: its method must be one of ours or of an installed
    plugin. Arguments that were objects (a bank of trajectories) are left at their defaults;
    training needs them, an edit does not.

    Args:
        path: An ``edit.safetensors`` or a ``.ckpt``, as `locate_checkpoint` finds it.

    Raises:
        ErasureError: If the file cannot be read, its method is not installed or takes other
            arguments by now, or the edit is another base model's.
    """
    checkpoint = read_checkpoint(path)
    made = checkpoint["erasure"]
    method = _method(path, str(made.get("method")))
    try:
        module = method(**_arguments(made))
    except (TypeError, KeyError) as error:
        versions = (
            ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
            or "unknown"
        )
        raise ErasureError(
            f"{path} was made with arguments that {method.__name__} does not take here ({error})."
            f" It was made with: {versions}."
        ) from error
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    return module.requires_grad_(False).eval()


def _method(path: Path, made: str) -> type[ErasureModule]:
    for offered in known_methods():
        if offered.name == made.rpartition(".")[2]:
            method = load_method(offered)
            if f"{method.__module__}.{method.__qualname__}" == made:
                return method
    raise ErasureError(
        f"{path} was made by the method {made}, which no installed package offers (`erasure"
        " methods` lists what is there). Install its package."
    )


def _arguments(made: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in made["arguments"].items() if not _opaque(value)}
    concepts = [Concept(**concept) for concept in made["concepts"]]
    return plain | {"concepts": concepts, "backbone": made["backbone"]}


def _opaque(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("<")  # an object's repr, not a value
