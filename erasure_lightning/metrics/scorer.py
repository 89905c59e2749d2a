"""`Scorer`: a frozen image-text model such as CLIP."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from erasure_lightning.edits.fingerprints import fingerprint
from erasure_lightning.errors import ErasureError

#: Model types trained on texts of full length, whose last position they read.
PADDED = ("siglip", "siglip2")

#: Filters by Pillow's numbers; torch has no others that smooth when they shrink.
_FILTERS = {2: "bilinear", 3: "bicubic"}

#: Exceptions of transformers on a folder or Hub id with missing or malformed parts.
UNREADABLE = (OSError, ValueError, KeyError, SafetensorError)


class Preprocessing(NamedTuple):
    """Image preprocessing of a ``preprocessor_config.json``, on tensors and differentiable.

    The fast image processors of transformers need torchvision, the others round to whole pixels.

    Args:
        size: Height and width to resize to, or one number for the shorter side; ``None`` keeps the
            size.
        crop: Height and width of the centre crop, ``None`` for none.
        mean: Subtracted from each of the three channels.
        std: Divides each of them.
        filter: Filter of the resizing, ``bilinear`` or ``bicubic``.
    """

    size: tuple[int, ...] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: str = "bicubic"

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        """Preprocessing of settings as transformers writes them.

        Raises:
            ValueError: If they need another filter.
        """
        number = settings.get("resample", 3)
        if number not in _FILTERS:
            raise ValueError(
                f"its images are resized with Pillow's filter {number}; known are 2, bilinear, and"
                " 3, bicubic"
            )
        size, crop = _resize_and_crop(settings) if settings.get("do_resize", True) else (None, None)
        if settings.get("do_center_crop", False):
            crop = _both(_sides(settings["crop_size"]))
        plain = not settings.get("do_normalize", True)
        mean = (0.0,) * 3 if plain else tuple(settings["image_mean"])
        std = (1.0,) * 3 if plain else tuple(settings["image_std"])
        return cls(size, crop, mean, std, _FILTERS[number])

    def __call__(self, images: Tensor) -> Tensor:
        """Preprocess images ``(B, 3, H, W)`` in 0..1 into ``(B, 3, h, w)``."""
        images = self._cropped(self._resized(images))
        mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def _resized(self, images: Tensor) -> Tensor:
        if self.size is None:
            return images
        shorter = min(images.shape[-2:])
        sides = (
            [side * self.size[0] // shorter for side in images.shape[-2:]]
            if len(self.size) == 1
            else self.size
        )
        if tuple(sides) == tuple(images.shape[-2:]):
            return images
        return interpolate(images, tuple(sides), mode=self.filter, antialias=True).clamp(0, 1)

    def _cropped(self, images: Tensor) -> Tensor:
        if self.crop is None:
            return images
        top, left = (
            (side - cropped) // 2
            for side, cropped in zip(images.shape[-2:], self.crop, strict=True)
        )
        return images[..., top : top + self.crop[0], left : left + self.crop[1]]


def _resize_and_crop(settings: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, int] | None]:
    """`Preprocessing.size`, and the crop that belongs to the resizing.

    ConvNeXt's processor, which ResNet has too, resizes the shorter side to more than its size and
    crops; from 384 on it resizes both sides. One number without any crop is of both sides (ViT).
    """
    sides = _sides(settings["size"])
    share = settings.get("crop_pct")
    if share is not None and sides[0] < 384:
        return (int(sides[0] / share),), _both(sides)
    is_square = isinstance(settings["size"], int) and not settings.get("do_center_crop", False)
    return (_both(sides) if share is not None or is_square else sides), None


def _sides(size: int | Mapping[str, int]) -> tuple[int, ...]:
    """One number for the shorter side, two for height and width."""
    if isinstance(size, int):
        return (size,)
    return (size["shortest_edge"],) if "shortest_edge" in size else (size["height"], size["width"])


def _both(sides: tuple[int, ...]) -> tuple[int, int]:
    return sides[0], sides[-1]


class Scorer(nn.Module):
    """Image and text features of a frozen model (CLIP, SigLIP, a world's scorer).

    Args:
        name: Folder or Hub id, for messages.
        model: A transformers model with ``get_image_features`` and ``get_text_features``.
        tokenizer: Its tokenizer.
        preprocessing: Its image preprocessing.

    Raises:
        ErasureError: If the model lacks one of the two methods.
    """

    def __init__(
        self, name: str, model: nn.Module, tokenizer: Any, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        if missing := [
            m for m in ("get_image_features", "get_text_features") if not hasattr(model, m)
        ]:
            raise ErasureError(
                f"The scorer {name!r} needs get_image_features and get_text_features as CLIP has"
                f" them; found {type(model).__name__} without {' and '.join(missing)}. Give a CLIP"
                " or SigLIP model."
            )
        self.name = name
        self.model: Any = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """Load a scorer in float32.

        Args:
            source: A folder as transformers writes it, or a Hub id; only the latter goes to the
                network.

        Raises:
            ErasureError: If there is no such folder, the weights are no safetensors, or it is no
                image-text model.
        """
        from transformers import AutoTokenizer

        name = str(source)
        check_source(name)
        try:
            model, settings = read_model(name)
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            return cls(name, model, tokenizer, Preprocessing.read(settings))
        except UNREADABLE as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ErasureError(f"The scorer {name!r} could not be loaded: {first}") from error

    def images(self, images: Tensor) -> Tensor:
        """Unit vectors ``(B, D)`` of images ``(B, 3, H, W)`` in 0..1, differentiable."""
        return _unit(self.model.get_image_features(pixel_values=self.preprocessing(images)))

    def texts(self, prompts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Unit vectors ``(N, D)`` of ``N`` prompts."""
        parts = [list(prompts[i : i + batch_size]) for i in range(0, len(prompts), batch_size)]
        return torch.cat(
            [_unit(self.model.get_text_features(**self._tokens(part))) for part in parts]
        )

    def _tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        config = self.model.config
        length = min(self.tokenizer.model_max_length, config.text_config.max_position_embeddings)
        padding = "max_length" if config.model_type in PADDED else "longest"
        tokens = self.tokenizer(
            prompts, padding=padding, truncation=True, max_length=length, return_tensors="pt"
        )
        return {key: value.to(self.model.device) for key, value in tokens.items()}

    def fingerprint(self) -> str:
        """A short hash of the weights: names, shapes and the first values of every tensor."""
        return fingerprint(self.model)


def check_source(name: str, what: str = "scorer") -> None:
    """Raise unless a name is a folder with safetensors weights or a Hub id.

    Args:
        name: The folder or id.
        what: Its purpose, for the message.

    Raises:
        ErasureError: If it is neither.
    """
    folder = Path(name)
    if not folder.exists() and (name.count("/") != 1 or name.startswith((".", "~"))):
        raise ErasureError(
            f"The {what} {name!r} was not found: it is no folder and no Hub id (owner/model)."
        )
    if folder.exists() and not any(folder.glob("*.safetensors")):
        pickles = (p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".ckpt"})
        raise ErasureError(
            f"The {what} {name!r} needs weights as safetensors; found"
            f" {', '.join(sorted(pickles)) or 'none'}. Pickles can run code and are not read: load"
            " the model once where you trust it and write it with save_pretrained."
        )


def read_model(name: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """Model and image settings; code in the model's folder is not run.

    Raises:
        ValueError: If weights are missing or have another shape: transformers would draw them at
            random.
    """
    from transformers import AutoModel, VisionTextDualEncoderModel
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model, loading = AutoModel.from_pretrained(
        name,
        use_safetensors=True,
        dtype=torch.float32,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # an error below, in one line
        output_loading_info=True,
    )
    mismatched = {key for key, *_ in loading["mismatched_keys"]}
    if wrong := sorted(mismatched | set(loading["missing_keys"])):
        raise ValueError(
            f"{len(wrong)} of its weights are missing or of another shape than in its config.json,"
            f" the first {wrong[0]}. Write the whole model again with save_pretrained."
        )
    if isinstance(model, VisionTextDualEncoderModel):
        # A residual network's pooled state is (B, C, 1, 1), which this class passes to the
        # projection as it is.
        model.visual_projection.register_forward_pre_hook(_flatten)
    settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    return model, settings


def _flatten(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].flatten(1)


def features_of(output: Any) -> Tensor:
    """The features ``(B, D)`` in a model's output, which transformers 5 wraps in an object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _unit(output: Any) -> Tensor:
    """Unit vectors of features ``(B, D)``."""
    return normalize(features_of(output), dim=-1)
