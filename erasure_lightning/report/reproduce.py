"""What to type to get the same edit and the same figures, without a path of the machine they were
made on.
"""

import json
import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.report.privacy import SHORTENED, without_paths
from erasure_lightning.report.run_record import Facts
from erasure_lightning.runs.folder import slug


def commands(facts: Facts) -> list[str]:
    """The commands, one a line; the config is the page's, or the card's."""
    name = slug(facts.name) or "run"
    lines = [f"erasure fit --config {name}.yaml --run_dir again/{name}"]
    if facts.measured != ".":
        lines.append(" ".join(["erasure test --ckpt_path", f"again/{name}", *facts.test_options]))
    lines += [attack_command(attempt.outcome, f"again/{name}") for attempt in facts.attacks]
    if facts.edit:
        lines.append(f"sha256sum again/{name}/edit.safetensors")
    return lines


def attack_command(outcome: Outcome, run: str) -> str:
    """How an attack was made, on a run of the reader's."""
    given = [
        f"--attack.{name} {shlex.quote(_value(value))}"
        for name, value in sorted(without_paths(outcome.arguments).items())
        if isinstance(value, str | int | float | bool)
    ]
    return " ".join(
        [f"erasure attack --ckpt_path {run} --attack {shlex.quote(outcome.attack)}", *given]
    )


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def own_values(facts: Facts) -> list[str]:
    """Options whose value named a path, in the place of which the reader gives one of theirs."""
    return list(dict.fromkeys(_shortened(yaml.safe_load(facts.config) if facts.config else None)))


def _shortened(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _shortened(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _shortened(item, key)
    elif isinstance(value, str) and value.startswith(SHORTENED):
        yield key
