"""Arguments of shipped configs, with which methods erase in the emoji world."""

from contextlib import suppress

import yaml

from erasure_lightning.api.configs import SHIPPED, shipped_configs


def numbers(name, **arguments):
    """The method's arguments in a shipped config, without model, concepts and latents.

    Args:
        name: Name of the config.
        arguments: Further arguments, which override the config's.
    """
    config = yaml.safe_load(shipped_configs()[f"{name}.yaml"].read_text())
    shipped = config["model"]["init_args"]
    for key in ("backbone", "concepts", "latents"):
        shipped.pop(key, None)
    return {key: _number(value) for key, value in shipped.items()} | arguments


def budget(name, **arguments):
    """An attack's arguments in a shipped config, with further ones, which override them."""
    config = yaml.safe_load((SHIPPED / "attacks" / f"{name}.yaml").read_text())
    return config["attack"]["init_args"] | arguments


def _number(value):
    if isinstance(value, str):
        with suppress(ValueError):  # YAML reads 6e-4 as a string
            return float(value)
    return value
