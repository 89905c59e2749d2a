"""Copies of modules that share all parameters but those that will change."""

import copy
from collections import OrderedDict
from typing import TypeVar

from torch import nn

_M = TypeVar("_M", bound=nn.Module)


def copy_along(module: _M, paths: set[tuple[str, ...]]) -> _M:
    """Copies ``module`` along ``paths``; children and parameters outside them are shared."""
    copied = copy.copy(module)
    for key, value in vars(module).items():
        # Children, parameters, buffers and hooks: an entry added to one must not appear in the
        # other.
        if type(value) in (dict, OrderedDict):
            copied.__dict__[key] = value.copy()
    for head in {path[0] for path in paths}:
        rest = {path[1:] for path in paths if path[0] == head and len(path) > 1}
        parameter = module._parameters.get(head)
        child = module._modules.get(head)
        if parameter is not None:
            copied._parameters[head] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        elif child is not None and rest:
            copied._modules[head] = copy_along(child, rest)
    return copied
