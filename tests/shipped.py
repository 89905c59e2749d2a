"""The numbers of shipped configs, with which methods erase in the emoji world."""

from contextlib import suppress

import yaml

from erasure_lightning.cli.configs import shipped_configs


def numbers(name, **more):
    """What the config of that name sets of its method beside concepts and latents, and ``more`` in
    place of it.
    """
    given = yaml.safe_load(shipped_configs()[f"{name}.yaml"].read_text())["model"]["init_args"]
    return {
        key: _number(value) for key, value in given.items() if key not in ("concepts", "latents")
    } | more


def _number(value):
    if isinstance(value, str):
        with suppress(ValueError):  # YAML takes 6e-4 for a word
            return float(value)
    return value
