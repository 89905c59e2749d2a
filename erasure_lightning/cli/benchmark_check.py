"""``erasure benchmark SUITE --check``: whether the model generates what is to be erased."""

from typing import Any

from erasure_lightning.api.quiet import silence
from erasure_lightning.benchmark.suite import Suite
from erasure_lightning.concepts.concept import shortened_names
from erasure_lightning.errors import ErasureError

#: Image seeds of ``erasure fit``, where a suite does not give their number.
_SEEDS = 3


def check_suite(suite: Suite) -> None:
    """Print whether each concept is generated before any edit.

    Raises:
        ErasureError: If one is not.
    """
    from erasure_lightning.api.accelerator import default_device
    from erasure_lightning.backbones.loading import load_backbone
    from erasure_lightning.benchmark.baseline_check import CHECK_HEADING, BaselineChecker

    silence()
    options = _sampling_options(suite)
    checker = BaselineChecker(load_backbone(suite.backbone).to(default_device()), **options)
    print(f"Recognised by {suite.backbone} before any edit, {checker.seeds} seeds; {CHECK_HEADING}")
    results = []
    for entry in suite.concepts:
        results.append(checker.check(entry))
        print(results[-1], flush=True)
    if failed := [result.entry.name for result in results if not result.holds]:
        raise ErasureError(
            f"{suite.backbone} does not generate well enough what is to be erased or retained:"
            f" {shortened_names(failed)}."
        )


def _sampling_options(suite: Suite) -> dict[str, Any]:
    """A suite's numbers with which images are generated.

    Raises:
        ErasureError: If one is no number.
    """
    options: dict[str, Any] = {"seeds": _SEEDS}
    for name in ("seeds", "steps", "image_size", "guidance"):
        value = suite.options.get(f"data.{name}")
        if value is None:
            continue
        if not isinstance(value, int | float if name == "guidance" else int):
            needed = "a number" if name == "guidance" else "a whole number"
            raise ErasureError(
                f"{suite.name}: options.data.{name} needs {needed}; found {value!r}."
            )
        options[name] = value
    return options
