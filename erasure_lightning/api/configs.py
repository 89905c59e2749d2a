"""Configs in YAML, by path or by the name of a shipped one."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from enum import Enum
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

import erasure_lightning
from erasure_lightning.concepts.concept import Concepts
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.strict_yaml import StrictLoader, yaml_error
from erasure_lightning.files.words import did_you_mean, shell_word
from erasure_lightning.registry import ATTACK, METHOD, RETENTION

_PACKAGE = Path(erasure_lightning.__file__).parent

#: In a wheel the configs lie in the package, in a checkout beside it.
SHIPPED = next(
    (p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir()),
    _PACKAGE / "configs",
)


#: Folders of configs for published models, and their pipeline class (docs/recipes.md).
RECIPES = {
    "sd15": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd35": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}

#: Folders of shipped files that are no configs of a fit, and what reads them.
_NO_CONFIGS = {
    "attacks": "erasure attack --config",
    "suites": "erasure benchmark",
    "concepts": "erasure fit --model.concepts",
}


def shipped_configs(*within: str) -> dict[str, Path]:
    """Configs by file name, of ours and of plugins (in their folder ``configs``).

    Args:
        within: Folders inside to look into; by default that folder itself. Of equal names that of
            the first folder is taken, and ours before a plugin's.
    """
    folders = [
        folder / inside for inside in within or ("",) for folder in (SHIPPED, *_plugin_folders())
    ]
    return {
        path.name: path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))
    }


def _plugin_folders() -> Iterator[Path]:
    """Folders of plugins' configs, found without importing a plugin, which may be broken."""
    installed = entry_points()
    for entry in (
        e for kind in (METHOD, ATTACK, RETENTION) for e in installed.select(group=kind.group)
    ):
        with suppress(Exception):
            spec = find_spec(entry.value.partition(":")[0].partition(".")[0])
            yield from (
                Path(folder, "configs")
                for folder in (spec and spec.submodule_search_locations) or ()
            )


def find_config(name: str, *within: str) -> Path:
    """The path of a config, given by path or by the name of a shipped one.

    Args:
        name: The path or the name; of a recipe with its family (``sdxl/esd.yaml``).
        within: As in `shipped_configs`.

    Raises:
        ErasureError: If there is none, with the shipped ones of similar names.
    """
    path = Path(name)
    if os.path.isfile(path):  # unlike Path.is_file no error where a name is too long
        return path
    if os.path.isdir(path):
        own = path / "config.yaml"
        hint = f" Did you mean {own}?" if own.is_file() else ""
        raise ErasureError(f"A config needs a YAML file; found the folder {name}.{hint}")
    family = str(path.parent) if str(path.parent) in RECIPES else ""
    shipped = {
        str(Path(family, file)): config
        for file, config in shipped_configs(*([family] if family else within)).items()
    }
    if config := shipped.get(str(path)) or shipped.get(f"{path}.yaml"):
        return config
    # Without the suffix, which all have in common and no name should be similar by.
    known = [config.removesuffix(".yaml") for config in shipped]
    similar = did_you_mean(str(Path(family, path.stem)), known)
    hint = _of_another_command(path) or similar
    recipes = f" Recipes for published models: {', '.join(RECIPES)} (sdxl/esd.yaml)."
    raise ErasureError(
        f"unknown config {name!r}: no such file."
        + (hint or f" Shipped: {', '.join(sorted(shipped)) or 'none'}.")
        + ("" if within else recipes)
    )


def recipe_pipeline(name: str) -> str:
    """Pipeline class that a shipped recipe is for; empty for another config, or one by its path."""
    return "" if os.path.isfile(name) else RECIPES.get(str(Path(name).parent), "")


def _of_another_command(path: Path) -> str:
    """A sentence that names what reads a shipped file that is no config; empty if there is none."""
    uses = (
        use
        for folder, use in _NO_CONFIGS.items()
        if str(path.parent) in (".", folder)
        and os.path.isfile(SHIPPED / folder / f"{path.stem}.yaml")
    )
    use = next(uses, "")
    return f" The shipped file of that name is read by `{use} {path.stem}`." if use else ""


def config_content(name: str, *within: str) -> dict[str, Any]:
    """The content of a config; arguments of `find_config`.

    Raises:
        ErasureError: If there is no such config, or it is none.
    """
    return read_config(find_config(name, *within))


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config.

    Raises:
        ErasureError: If it is no YAML, with the line, no mapping of options, or a suite.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise yaml_error(path, error) from error
    if not isinstance(content, dict):
        raise ErasureError(
            f"{path} needs options as `name: value` lines; found {type(content).__name__}."
        )
    for key in ("data", "trainer"):
        if not isinstance(section := content.get(key, {}), dict):
            raise ErasureError(f"{path}: {key} needs `name: value` lines; found {section!r}.")
    if {"methods", "concepts"} <= content.keys():
        raise ErasureError(
            f"{path} is a suite: run it with `erasure benchmark {shell_word(path)}`."
        )
    return content


class _Loader(StrictLoader):
    """YAML 1.1 with the numbers people write: ``1e-4`` is one."""


#: Rules of YAML 1.1 that are left out: floats have a rule of ours, and a date is text.
_LEFT_OUT = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")

_FLOAT = (
    r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?"
    r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
)

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in _LEFT_OUT]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+0123456789."))


def load_yaml(text: str) -> Any:
    """The value of a config's text, or of a value on the command line."""
    value = yaml.load(text, Loader=_Loader)
    if (
        isinstance(value, dict)
        and value
        and all(v is None for v in value.values())
        and not text.rstrip().endswith("}")
    ):
        return value if "\n" in text else text  # `word:` alone is a word
    return value


#: PyYAML's own dumper, since LightningCLI dumps its config with it too.
yaml.SafeDumper.add_representer(
    Concepts, lambda dumper, concepts: dumper.represent_list(list(map(asdict, concepts.listed)))
)


class _ConfigDumper(yaml.SafeDumper):
    """Writes enums, which callbacks of Lightning have as defaults, as their values."""


_ConfigDumper.add_multi_representer(Enum, lambda dumper, enum: dumper.represent_data(enum.value))


def dump_yaml(value: Any) -> str:
    """The text of a config of plain values and concepts, in their order."""
    return yaml.dump(value, Dumper=_ConfigDumper, sort_keys=False, allow_unicode=True)
