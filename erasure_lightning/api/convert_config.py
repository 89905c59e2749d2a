"""`convert_config`: configs of LECO and of ai-toolkit's sliders as configs of ours.

Both train low-rank adapters towards ``neutral - g (positive - unconditional)``. That is ESD's
target where the neutral prediction is the unconditional one, or that of the prompt that is edited.
What has no counterpart is refused where it would change what is erased, else named in a comment.

LECO: p1atdev/LECO @ a93cb46, ``config_util.py``, ``prompt_util.py`` and ``train_lora.py``. Its
``training_method`` has no effect there but one: it is compared with names of whole transformers, so
that ``xattn`` and ``selfattn`` train no layer, and all others every layer of them.

Sliders: ostris/ai-toolkit @ 287fd08, ``config/examples/train_slider.example.yml``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from erasure_lightning.discovery import cause_of
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.strict_yaml import read_yaml_file

#: LECO's defaults, where its config leaves them out.
_STEPS = 500
_RATE = 1e-4
_RANK = 4
_ROLLOUT = 50


@dataclass
class _Target:
    """A prediction that is trained, and its target.

    Args:
        erased: The concept.
        edited: The prompt whose prediction is trained; the concept itself, or another one.
        eta: ESD's weight of it.
        batch_size: Latents in a step.
        size: Side of images in pixels; None for the model's own.
    """

    erased: str
    edited: str
    eta: float
    batch_size: int = 1
    size: int | None = None


@dataclass
class _Training:
    """A config that was read.

    Args:
        source: Whose layout it was in.
        targets: What is trained.
        backbone: The model.
        rank: Rank of each adapter.
        alpha: The adapters' scale is ``alpha / rank``.
        rate: Learning rate.
        steps: Training steps.
        rollout: Denoising steps of a trajectory.
        schedule: Schedule of the learning rate.
        optimizer: Name of the optimizer.
        half: Whether the model is in bfloat16.
        notes: What has no counterpart.
    """

    source: str
    targets: list[_Target]
    backbone: str
    rank: int
    alpha: float
    rate: float
    steps: int
    rollout: int
    schedule: str
    optimizer: str
    half: bool
    notes: list[str] = field(default_factory=list)


def convert_config(file: str | Path) -> str:
    """The text of a config for `ESD` with adapters, out of one of LECO or of a slider.

    Args:
        file: LECO's config, beside its prompts, or an ai-toolkit job with a process ``slider``.

    Raises:
        ErasureError: If it is neither, has other values, or trains what ESD cannot.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from erasure_lightning import convert_config
        >>> with TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "prompts.yaml").write_text("- target: van gogh")
        ...     config = Path(folder) / "config.yaml"
        ...     text = "{prompts_file: prompts.yaml, pretrained_model: {name_or_path: owner/model}}"
        ...     _ = config.write_text(text)
        ...     "name: van gogh" in convert_config(config)
        True
    """
    path = Path(file)
    content = read_yaml_file(path)
    try:
        return _text(path, _read(path, content))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ErasureError(
            f"{path} needs the values that LECO or ai-toolkit reads; found others"
            f" ({cause_of(error)}). Compare it with one of theirs."
        ) from error


def _read(path: Path, content: Any) -> _Training:
    """The training that a config describes.

    Raises:
        ErasureError: If it is neither LECO's nor a slider's.
    """
    if isinstance(content, dict) and "prompts_file" in content:
        return _leco(path, content)
    if isinstance(content, dict) and isinstance(content.get("config"), dict):
        return _slider(path, content["config"])
    raise ErasureError(
        f"{path} needs to be LECO's config (prompts_file) or an ai-toolkit job"
        " (config.process); found neither."
    )


def _leco(path: Path, content: Mapping[str, Any]) -> _Training:
    prompts_file = path.parent / str(content["prompts_file"])
    prompts = read_yaml_file(prompts_file)
    if not (isinstance(prompts, list) and prompts and all("target" in p for p in prompts)):
        raise ErasureError(f"{prompts_file} needs a list of prompts with a target each.")
    network = content.get("network") or {}
    train = content.get("train") or {}
    training = _Training(
        "LECO",
        [_leco_target(prompts_file, prompt) for prompt in prompts],
        _model(path, content.get("pretrained_model")),
        int(network.get("rank", _RANK)),
        float(network.get("alpha", 1.0)),
        float(train.get("lr", _RATE)),
        int(train.get("iterations", _STEPS)),
        int(train.get("max_denoising_steps", _ROLLOUT)),
        str(train.get("lr_scheduler", "constant")),
        str(train.get("optimizer", "adamw")),
        str(train.get("precision", "bfloat16")) in ("bfloat16", "bf16"),
    )
    if network.get("type") == "c3lier":
        training.notes.append("c3lier's adapters of convolutions: linear layers alone have some")
    return training


def _leco_target(path: Path, prompt: Mapping[str, Any]) -> _Target:
    """One entry of LECO's prompts.

    Raises:
        ErasureError: If ESD cannot train it.
    """
    target = str(prompt["target"])
    positive = str(prompt.get("positive", target))
    unconditional = str(prompt.get("unconditional", ""))
    neutral = str(prompt.get("neutral", unconditional))
    scale = float(prompt.get("guidance_scale", 1.0))
    common = int(prompt.get("batch_size", 1)), prompt.get("resolution")
    if prompt.get("action", "erase") != "erase":
        raise ErasureError(f"{path}: {target!r} is enhanced; only erasing can be converted.")
    if unconditional == "" == neutral and target == positive:
        return _Target(positive, positive, scale, *common)
    if unconditional == "" and neutral == target and scale >= 1:
        return _Target(positive, target, scale - 1, *common)
    raise ErasureError(
        f"{path}: {target!r} needs the target as its positive and an empty neutral, or the target"
        f" as its neutral and a guidance_scale of at least 1, and an empty unconditional; found"
        f" positive {positive!r}, neutral {neutral!r}, unconditional {unconditional!r}, {scale:g}."
    )


def _slider(path: Path, content: Mapping[str, Any]) -> _Training:
    processes = content.get("process") or [{}]
    process = processes[0]
    slider = process.get("slider") or {}
    if process.get("type") != "slider" or len(processes) > 1 or not slider.get("targets"):
        raise ErasureError(f"{path} needs one process of type slider, with targets.")
    network = process.get("network") or {}
    train = process.get("train") or {}
    rank = int(network.get("linear", network.get("rank", _RANK)))
    sizes = slider.get("resolutions") or [[None]]
    batch = int(train.get("batch_size", 1))
    targets = [_slider_target(path, target, batch, sizes[0][0]) for target in slider["targets"]]
    training = _Training(
        "an ai-toolkit slider",
        targets,
        _model(path, process.get("model")),
        rank,
        float(network.get("linear_alpha", network.get("alpha", rank))),
        float(train.get("lr", _RATE)),
        int(train.get("steps", _STEPS)),
        int(train.get("max_denoising_steps", _ROLLOUT)),
        str(train.get("lr_scheduler", "constant")),
        str(train.get("optimizer", "adamw")),
        str(train.get("dtype", "")) in ("bfloat16", "bf16"),
        ["the positive side, which enhances: the prompt called positive is erased"],
    )
    if any(target.get("negative") for target in slider["targets"]):
        training.notes.append("the prompts called negative: no prediction is trained towards them")
    if slider.get("anchors"):
        training.notes.append("anchors: retain them with a retention callback (docs/usage.md)")
    return training


def _slider_target(path: Path, target: Mapping[str, Any], batch: int, size: int | None) -> _Target:
    erased = str(target.get("positive") or "")
    if not erased:
        raise ErasureError(f"{path}: a target needs a positive prompt, which is erased.")
    edited = str(target.get("target_class") or erased)
    eta = 1.0 if edited == erased else 0.0
    return _Target(erased, edited, eta, batch, size)


def _model(path: Path, section: Any) -> str:
    name = (section or {}).get("name_or_path")
    if not name:
        raise ErasureError(f"{path} needs the model's name_or_path; found none.")
    return str(name)


def _text(path: Path, training: _Training) -> str:
    """The config as text, with comments on what differs.

    Raises:
        ErasureError: If the targets need several runs.
    """
    first = training.targets[0]
    kinds = {(target.eta, target.edited == target.erased) for target in training.targets}
    if len(kinds) > 1:
        raise ErasureError(
            f"{path} erases in {len(kinds)} ways (guidance_scale, neutral): convert one file each."
        )
    itself = first.edited == first.erased
    concepts = [
        {"name": t.erased} | ({} if itself else {"anchor": t.edited}) for t in training.targets
    ]
    arguments: dict[str, Any] = {
        "backbone": training.backbone,
        "concepts": concepts,
        "train": "all",
        "rank": training.rank,
        "lora_layers": r"attentions\.",
        "eta": first.eta,
        "erase_from": "concept" if itself else "anchor",
        "lr": training.rate,
        "schedule": _schedule(training),
        "optimizer": "adamw",
        "base_dtype": "bfloat16" if training.half else "float32",
        "image_size": first.size,
        "latents": {"class_path": "TrajectoryBank", "init_args": _bank(training, first)},
    }
    config = {
        "model": {"class_path": "ESD", "init_args": arguments},
        "data": {"batch_size": first.batch_size, "templates": ["{}"]},
        "trainer": {"max_steps": training.steps},
    }
    heading = [f"Out of {path.name} of {training.source}.", *_differences(training)]
    comments = "".join(f"# {line}\n" for line in heading)
    return comments + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _schedule(training: _Training) -> str:
    return "cosine" if training.schedule.startswith("cosine") else "constant"


def _differences(training: _Training) -> list[str]:
    """Sentences on what the config does otherwise."""
    notes = list(training.notes)
    if len({(target.size, target.batch_size) for target in training.targets}) > 1:
        notes.append("sizes and batch sizes of the other prompts: those of the first")
    if training.alpha != training.rank:
        share = training.alpha / training.rank
        notes.append(f"the adapters' scale alpha / rank, {share:g}: ours is 1, at the same rate")
    schedule = _schedule(training)
    if schedule != training.schedule:
        notes.append(f"the schedule {training.schedule}: {schedule}")
    if training.optimizer.lower() != "adamw":
        notes.append(f"the optimizer {training.optimizer}: adamw")
    return [f"Not as there: {note}." for note in notes]


def _bank(training: _Training, target: _Target) -> dict[str, Any]:
    """Each step has a rollout of its own, of the model in training, with guidance 3."""
    return {
        "trajectories": target.batch_size,
        "steps": training.rollout,
        "guidance": 3.0,
        "student": True,
        "refresh": 1,
    }
