"""What low-rank factors lose of an edit, in images."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from erasure_lightning.edits.changes import Change, LowRank, components_of
from erasure_lightning.edits.components import EditedComponent

#: Sampling steps of each image.
_STEPS = 20


def image_error(
    pipeline: Any, changes: Mapping[str, Change], lowered: LowRank, prompt: str, images: int
) -> float:
    """Mean absolute difference of images generated with low-rank factors from those of the edit.

    Args:
        pipeline: The stock pipeline that holds the edit; it is left as it was.
        changes: Parameters before and after the edit, by component and name.
        lowered: The edit's low-rank factors.
        prompt: What is generated, in 20 steps, from seeds 0, 1, ...
        images: How many are generated with each, at least 1.

    Returns:
        The difference of pixels in 0..1.
    """
    with _without_progress(pipeline):
        edited = _generated(pipeline, prompt, images)
        with _low_rank(pipeline, changes, lowered):
            return float((_generated(pipeline, prompt, images) - edited).abs().mean())


@contextmanager
def _without_progress(pipeline: Any) -> Iterator[None]:
    """The pipeline without its progress bar, of which there would be one an image."""
    config = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(**config | {"disable": True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**config)


def _generated(pipeline: Any, prompt: str, images: int) -> torch.Tensor:
    """Images ``(images, 3, H, W)`` of a prompt in 0..1, from seeds 0, 1, ..."""
    each = [
        pipeline(
            prompt,
            num_inference_steps=_STEPS,
            output_type="pt",
            generator=torch.Generator().manual_seed(seed),
        ).images
        for seed in range(images)
    ]
    return torch.cat(each).float()


@contextmanager
def _low_rank(pipeline: Any, changes: Mapping[str, Change], lowered: LowRank) -> Iterator[None]:
    """The pipeline with the factors' products in place of the edit; other edits in it stay."""
    components = {name: EditedComponent(pipeline, name) for name in components_of(changes)}
    parameters = {
        f"{name}.{key}": parameter
        for name, component in components.items()
        for key, parameter in component.parameters().items()
    }
    edited = {name: parameters[name].data.clone() for name in changes}
    try:
        for name, change in changes.items():
            factors = lowered.factors.get(name.removesuffix(".weight"))
            lost = change.difference
            if factors:  # an edit's own are on the CPU, wherever the pipeline is
                lost = lost - factors.product().to(lost.device)
            parameters[name].data.sub_(lost.to(edited[name]))
        yield
    finally:
        for name, value in edited.items():
            parameters[name].data.copy_(value)
