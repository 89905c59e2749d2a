"""YAML without repeated keys."""

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.text_files import read_text

#: libyaml's parser, if PyYAML was built with it, is seven times as fast.
_Fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class StrictLoader(_Fast):  # type: ignore[misc]  # its class depends on how PyYAML was built
    """PyYAML's safe loader, with an error for a repeated key in a mapping."""

    def get_single_node(self) -> yaml.Node | None:
        """Composes the document.

        Raises:
            ConstructorError: If a key is repeated, with the line of the first.
        """
        node: yaml.Node | None = super().get_single_node()
        _check_keys([node] if node is not None else [])
        return node


def _check_keys(nodes: list[yaml.Node]) -> None:
    visited = set()
    while nodes:
        node = nodes.pop()
        if id(node) in visited or isinstance(node, yaml.ScalarNode):
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _require_unique([key for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            nodes += [part for pair in node.value for part in pair]
        else:
            nodes += node.value


def _require_unique(keys: list[yaml.ScalarNode]) -> None:
    first: dict[tuple[str, str], yaml.ScalarNode] = {}
    for key in keys:
        before = first.setdefault((key.tag, key.value), key)
        if before is not key:
            problem = f"found {key.value!r} twice, first in line {before.start_mark.line + 1}"
            raise ConstructorError(None, None, problem, key.start_mark)


def read_yaml(text: str) -> Any:
    """Content of a YAML document.

    Raises:
        YAMLError: If it is not valid, or has a repeated key.
    """
    return yaml.load(text, Loader=StrictLoader)


def read_yaml_file(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        ErasureError: If it cannot be read, or is no valid YAML.
    """
    text = read_text(path)
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise yaml_error(path, error) from error


def yaml_error(path: Path, error: Exception, advice: str = "") -> ErasureError:
    """The error of a file that is no valid YAML, with the line where it is known.

    Args:
        path: The file.
        error: What reading it raised.
        advice: What follows the problem.
    """
    mark = getattr(error, "problem_mark", None)
    where = f"{path}, line {mark.line + 1}" if mark else str(path)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return ErasureError(f"{where}: no valid YAML ({problem}).{advice}")
