"""The parser's complaints in one clear line: what is wrong where, and what was probably meant."""

import inspect
import re
from collections.abc import Iterable, Iterator

from lightning import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from erasure_lightning.attacks.base import Attack
from erasure_lightning.cli.arguments import did_you_mean
from erasure_lightning.cli.short_names import CLASSES, LOGGERS
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.trajectory_bank import TrajectoryBank

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":')
_NOISE = (
    *(
        "Does not validate",
        "Not of type Concepts",
        "Subtypes:",
        "Errors:",
        "Given value",
        "Expected a path but",
    ),
    "Problem with given class",
)
#: Alternatives that nobody who wrote a name meant.
_NOTHING = tuple(
    f"Expected a <class '{name}'>" for name in ("NoneType", "bool", "collections.abc.Iterable")
)
#: Nor a file by one who wrote a list of concepts.
_CONCEPTS, _FILE = "model.concepts", "Expected a <class 'str'>"
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
}


def tidy(message: str, parser: LightningArgumentParser) -> str:
    """One line for a complaint of jsonargparse."""
    if found := re.match(r"unrecognized arguments: (.*)", message, re.S):
        return _unrecognized(found[1].split(), parser)
    if found := re.match(r"Group '(.+)' does not accept option '(.+)'", message):
        return _refused(found[1], found[2], parser)
    told = list(dict.fromkeys(_told(message, parser)))
    return "; ".join(told) or " ".join(message.split())


def _told(message: str, parser: LightningArgumentParser) -> Iterator[str]:
    """What remains of a nested complaint, each with the key it is about."""
    keys: list[str] = []
    lines = message.splitlines()
    for number, line in enumerate(lines):
        text = line.strip().removeprefix("- ")
        if found := _KEY.match(text):
            keys.append(found["key"])
            text = text[found.end() :].strip()
        key = ".".join(dict.fromkeys(keys))
        nothing = (*_NOTHING, _FILE) if key.startswith(_CONCEPTS) else _NOTHING
        if text and not text.startswith(_NOISE) and text not in nothing:
            yield _line(text, key, parser, _given(lines[number:]))


def _given(lines: Iterable[str]) -> str:
    """What was found, as the alternatives' common end tells; empty if it does not."""
    for line in lines:
        name, _, value = line.strip().partition(": ")
        if name == "Given value":
            return (
                "" if "(" in value else f"; found {value!r}"
            )  # no object that the parser made of it
    return ""


def _line(text: str, key: str, parser: LightningArgumentParser, given: str) -> str:
    if found := re.match(r"Option '(.+)' is not accepted", text):
        return _refused(key, found[1], parser)
    if (found := re.match(r"Expected a dot import path string: (.*)", text)) and key == _CONCEPTS:
        return f"{key} needs {{name: {found[1]}}} in its list; found {found[1]!r}"
    if found:
        return f"{key} knows no {found[1]!r}{did_you_mean(found[1], _names(key))}"
    if found := re.match(r"the following arguments are required: (.*)", text):
        return f"{key or 'erasure'} needs {found[1]}: give --{key}.{found[1].split(',')[0]}"
    if found := re.match(r"Expected a (.+)\. Got value: (.*)", text):
        return f"{key} needs {_type(found[1])}; found {found[2]!r}"
    if (found := re.fullmatch(r"Expected a (<class '\w+'>)", text)) and key:
        return f"{key} needs {_type(found[1])}{given}"
    return f"{key}: {text}" if key else text


def _type(text: str) -> str:
    if found := re.match(r"typing\.Literal\[(.*)\]", text):
        return f"one of {found[1]}"
    plain = re.sub(r"<class '([\w.]+)'>", lambda m: m[1].rsplit(".", 1)[-1], text)
    return _TYPES.get(plain, plain)


def _unrecognized(words: list[str], parser: LightningArgumentParser) -> str:
    known = [name for action in parser._actions for name in action.option_strings]
    odd = [word.split("=")[0] for word in words if word.startswith("-")] or words
    return "; ".join(f"unknown argument {word!r}{did_you_mean(word, known)}" for word in odd)


def _refused(key: str, option: str, parser: LightningArgumentParser) -> str:
    known = _options(key, parser)
    meant = (
        ": others of its kind have, this class has not"
        if option in known
        else did_you_mean(option, known)
    )
    return f"{key or 'the config'} has no option {option!r}{meant}"


def _options(key: str, parser: LightningArgumentParser) -> set[str]:
    """What could have been meant under a key."""
    if key.startswith("model"):
        return _parameters(ErasureModule) | _parameters(Concept) | _parameters(TrajectoryBank)
    if key.startswith("attack"):
        return _parameters(Attack)
    if key.startswith("trainer.callbacks"):
        return _parameters(Callback)
    if key.startswith("trainer.logger"):
        return _parameters(Logger)
    inside = f"{key}." if key else ""
    return {
        a.dest.removeprefix(inside).split(".")[0]
        for a in parser._actions
        if a.dest.startswith(inside)
    }


def _names(key: str) -> set[str]:
    names = {c.__name__ for c in _family(Callback if "callbacks" in key else Logger)}
    return names | set(CLASSES) if "callbacks" in key else names | set(LOGGERS)


def _family(cls: type) -> list[type]:
    children: list[type] = type.__subclasses__(cls)
    return [cls, *(member for child in children for member in _family(child))]


def _parameters(cls: type) -> set[str]:
    """Constructor arguments of a class and everything derived from it."""
    return {name for member in _family(cls) for name in inspect.signature(member).parameters} - {
        "args",
        "kwargs",
    }
