"""Checks of a backbone before a method is trained on it."""

from collections.abc import Collection, Sequence

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.interface import Capability
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.vocabulary import unknown_to
from erasure_lightning.concepts.worlds import World
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import folded


def require_backbone_name(
    backbone: str | Backbone, base_dtype: str, loras: Collection[str] | None
) -> None:
    """Check that a model is given by name where a method reads it from files of its own.

    Args:
        backbone: The model, or its name.
        base_dtype: Precision of its frozen weights.
        loras: LoRA files that are fused into it.

    Raises:
        ErasureError: If it is a model that LoRAs or a precision would change.
    """
    if isinstance(backbone, str):
        return
    if loras:
        raise ErasureError("loras needs a backbone by name; fuse them into the pipeline first.")
    if base_dtype == "int8":
        raise ErasureError(
            "base_dtype int8 needs a backbone by name, since it rounds the weights of the model in"
            f" memory; found a {type(backbone).__name__}. Give bfloat16, or the name of a folder."
        )


def check_backbone(
    backbone: Backbone, concepts: Sequence[Concept], needs: Collection[Capability], owner: str
) -> None:
    """Check that a model knows the concepts and has the capabilities that a method uses.

    Args:
        backbone: The model.
        concepts: Concepts to erase.
        needs: Capabilities beyond predictions.
        owner: Name of the method in messages.

    Raises:
        ErasureError: If the model's world does not know a concept, or a capability is missing.
    """
    if backbone.world is not None:
        check_world(backbone.world, concepts)
    check_capabilities(type(backbone), needs, owner)


def check_world(world: World, concepts: Sequence[Concept]) -> None:
    """Check that a world knows the concepts, a style as a style.

    Args:
        world: The world.
        concepts: Concepts to erase.

    Raises:
        ErasureError: If it does not know one, with the most similar ones; if it knows one as
            another kind, by which no image would be recognised.
    """
    if unknown := [c.name for c in concepts if not world.has_word(c.name)]:
        raise unknown_to(world, unknown[0])
    styles = set(map(folded, world.styles))
    for concept in concepts:
        is_style = concept.kind == "style"
        if not (folded(concept.name) in styles if is_style else world.labels_of(concept.name)):
            known = "thing" if is_style else "style"
            raise ErasureError(
                f"The world {world.name} knows {concept.name!r} as a {known}; found the kind"
                f" {concept.kind}. Give it kind: {known}."
            )


def missing_capabilities(family: type[Backbone], needs: Collection[Capability]) -> str:
    """What a family lacks of what is needed, in words; empty for a family that has it all."""
    return " and ".join(sorted(set(needs) - family.capabilities))


def check_capabilities(family: type[Backbone], needs: Collection[Capability], owner: str) -> None:
    """Check that a family has the capabilities that a method or an attack uses.

    Args:
        family: The family.
        needs: Capabilities beyond predictions.
        owner: Name of the method or attack in messages.

    Raises:
        ErasureError: If one is missing.
    """
    if missing := missing_capabilities(family, needs):
        raise ErasureError(
            f"{owner} needs {missing}, which {family.__name__} does not have. `erasure methods"
            " --families` shows which method runs on which family."
        )
