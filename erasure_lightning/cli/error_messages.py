"""Errors of jsonargparse as one line, with the key and the nearest known names."""

import inspect
import re
from collections.abc import Iterable, Iterator

from lightning import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from erasure_lightning.attacks.base import Attack
from erasure_lightning.cli.arguments import suggestion
from erasure_lightning.cli.short_names import LOGGERS, retention_names
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.registry import CLASSES
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.trajectory_bank import TrajectoryBank

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":')

#: Starts of lines that frame the errors of a nested value.
_FRAME = (
    "Does not validate",
    "Not of type Concepts",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a path but",
    "Problem with given class",
    "Subclass types expect one of",
    "a class path (str)",
    "a dict with",
)

#: Alternatives of a type that are not meant where a name was written.
_UNLIKELY = tuple(
    f"Expected a <class '{name}'>" for name in ("NoneType", "bool", "collections.abc.Iterable")
)

#: Where one is listed a file is unlikely too.
_CONCEPTS = "model.concepts"
_FILE = "Expected a <class 'str'>"

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
}


def one_line_error(message: str, parser: LightningArgumentParser) -> str:
    """One line for an error of jsonargparse.

    Args:
        message: The error's text, of any number of lines.
        parser: Which raised it; its options are what is suggested.
    """
    if match := re.match(r"unrecognized arguments: (.*)", message, re.S):
        return _unrecognized(match[1].split(), parser)
    if match := re.match(r"Group '(.+)' does not accept option '(.+)'", message):
        return _no_option(match[1], match[2], parser)
    errors = _joined(dict.fromkeys(_errors(message, parser)))
    return "; ".join(errors or _no_class(message)) or " ".join(message.split())


def _joined(errors: Iterable[str]) -> list[str]:
    """The errors; choices of several types that one option takes are in one of them."""
    joined: dict[tuple[str, str], list[str]] = {}
    for error in errors:
        match = re.fullmatch(r"(.+ needs one of )(.+)(; found .+)", error)
        before, choices, after = match.groups() if match else (error, "", "")
        joined.setdefault((before, after), []).append(choices)
    return [", ".join(choices).join(ends) for ends, choices in joined.items()]


def constructor_error(error: ValueError, parser: LightningArgumentParser) -> ErasureError:
    """The error of a constructor that refused its arguments: its own, if it is one of ours.

    Args:
        error: What jsonargparse raised.
        parser: Which raised it.
    """
    cause = error if isinstance(error, ErasureError) else error.__cause__
    is_own = isinstance(cause, ErasureError)
    return ErasureError(str(cause) if is_own else one_line_error(str(error), parser))


def _errors(message: str, parser: LightningArgumentParser) -> Iterator[str]:
    """The errors inside a nested one, each with the key it is about."""
    keys: list[str] = []
    lines = message.splitlines()
    for number, line in enumerate(lines):
        text = line.strip().removeprefix("- ")
        if match := _KEY.match(text):
            keys.append(match["key"])
            text = text[match.end() :].strip()
        key = ".".join(dict.fromkeys(keys))
        unlikely = (*_UNLIKELY, _FILE) if key.startswith(_CONCEPTS) else _UNLIKELY
        is_bare = re.fullmatch(r"Not a valid subclass of \w+", text)  # its cause is beside it
        if text and not text.startswith(_FRAME) and text not in unlikely and not is_bare:
            yield _line(text, key, parser, _value_ending(lines[number:]))


def _no_class(message: str) -> list[str]:
    """The error of a value, such as a list, in which no name of a class could be looked for."""
    pattern = r'Parser key "([^"]+)":.*Not a valid subclass of (\w+).*Given value: ([^\n]*)'
    match = re.search(pattern, message, re.DOTALL)
    return [f"{match[1]} needs the name of a {match[2]}; found {match[3]}"] if match else []


def _value_ending(lines: Iterable[str]) -> str:
    """``; found VALUE`` as an error's last line has it; empty for an object of the parser."""
    for line in lines:
        name, _, value = line.strip().partition(": ")
        if name == "Given value":
            return "" if "(" in value else f"; found {value!r}"
    return ""


def _line(text: str, key: str, parser: LightningArgumentParser, ending: str) -> str:
    if match := re.match(r"Option '(.+)' is not accepted", text):
        return _no_option(key, match[1], parser)
    if match := re.match(r"Expected a dot import path string: (.*)", text):
        if key == _CONCEPTS:
            return f"{key} needs {{name: {match[1]}}} in its list; found {match[1]!r}"
        return f"unknown {key} {match[1]!r}{_hint(match[1], key)}"
    if match := re.match(r"the following arguments are required: (.*)", text):
        prefix = f"--{key}." if key else "--"
        missing = [f"{prefix}{name.strip()}" for name in match[1].split(",")]
        return f"{key or 'erasure'} needs {match[1]}: give {' and '.join(missing)}"
    if match := re.match(r"Not a valid subclass of (\w+)\. Got value: (.*)", text):
        return f"{key} needs the name of a {match[1]}; found {match[2]!r}"
    if match := re.match(r"Expected a (.+)\. Got value: (.*)", text):
        return f"{key} needs {_type(match[1])}; found {match[2]!r}"
    if (match := re.fullmatch(r"Expected a (<class '\w+'>|typing\.Literal\[.*\])", text)) and key:
        return f"{key} needs {_type(match[1])}{ending}"
    return f"{key}: {text}" if key else text


def _type(text: str) -> str:
    if match := re.match(r"typing\.Literal\[(.*)\]", text):
        return f"one of {match[1]}"
    plain = re.sub(r"<class '([\w.]+)'>", lambda match: match[1].rsplit(".", 1)[-1], text)
    return _TYPES.get(plain, plain)


def _unrecognized(words: list[str], parser: LightningArgumentParser) -> str:
    known = [name for action in parser._actions for name in action.option_strings]
    unknown = [word.split("=")[0] for word in words if word.startswith("-")] or words
    return "; ".join(f"unknown argument {word!r}{suggestion(word, known)}" for word in unknown)


def _no_option(key: str, option: str, parser: LightningArgumentParser) -> str:
    known = _options(key, parser)
    hint = (
        ": others of its kind have, this class has not"
        if option in known
        else suggestion(option, known)
    )
    return f"{key or 'the config'} has no option {option!r}{hint}"


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
        action.dest.removeprefix(inside).split(".")[0]
        for action in parser._actions
        if action.dest.startswith(inside)
    }


def _hint(name: str, key: str) -> str:
    """The end of a sentence about an unknown class: names like it, or the loggers."""
    if "logger" in key:
        known = {cls.__name__ for cls in _family(Logger)} | {*LOGGERS}
        return suggestion(name, known) or f". Known: {', '.join(LOGGERS)}, or a class path"
    classes = {cls.__name__ for cls in _family(Callback)} if "callbacks" in key else set()
    return suggestion(name, {*classes, *CLASSES, *retention_names()})


def _family(cls: type) -> list[type]:
    """A class and everything derived from it."""
    children: list[type] = type.__subclasses__(cls)
    return [cls, *(member for child in children for member in _family(child))]


def _parameters(cls: type) -> set[str]:
    """Constructor arguments of a class and of everything derived from it."""
    names = {name for member in _family(cls) for name in inspect.signature(member).parameters}
    return names - {"args", "kwargs"}
