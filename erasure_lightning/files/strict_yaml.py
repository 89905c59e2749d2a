"""YAML in which a key may stand once."""

from typing import Any

import yaml
from yaml.constructor import ConstructorError

#: libyaml's parser, where PyYAML was built with it, is seven times as fast.
_Fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class StrictLoader(_Fast):  # type: ignore[misc]  # its class depends on how PyYAML was built
    """PyYAML's safe loader, for which a key given twice in one mapping is an error."""

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document.

        Raises:
            ConstructorError: If a key is given twice, naming it and the line of the first.
        """
        node: yaml.Node | None = super().get_single_node()
        _check_keys([node] if node is not None else [])
        return node


def _check_keys(nodes: list[yaml.Node]) -> None:
    met = set()
    while nodes:
        node = nodes.pop()
        if id(node) in met or isinstance(node, yaml.ScalarNode):
            continue
        met.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _check_once([key for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            nodes += [part for pair in node.value for part in pair]
        else:
            nodes += node.value


def _check_once(keys: list[yaml.ScalarNode]) -> None:
    first: dict[tuple[str, str], yaml.ScalarNode] = {}
    for key in keys:
        before = first.setdefault((key.tag, key.value), key)
        if before is not key:
            problem = f"found {key.value!r} twice, first in line {before.start_mark.line + 1}"
            raise ConstructorError(None, None, problem, key.start_mark)


def read_yaml(text: str) -> Any:
    """What a YAML document holds.

    Raises:
        YAMLError: If it is none, or has a key twice.
    """
    return yaml.load(text, Loader=StrictLoader)
