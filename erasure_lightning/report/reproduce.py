"""Commands that make a run's edit and figures again, without paths of the machine."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.concepts.worlds import find_world, worlds
from erasure_lightning.files.words import unique_names
from erasure_lightning.metrics.protocol import Protocol
from erasure_lightning.report.privacy import PATH_PLACEHOLDER, without_paths
from erasure_lightning.report.run_record import RunRecord
from erasure_lightning.runs.folder import slug


def reproduction_commands(record: RunRecord) -> list[str]:
    """The commands, one a line; their config is the one in the page or the card."""
    name = slug(record.name) or "run"
    run = f"again/{name}"
    lines = [f"erasure fit --config {name}.yaml --run_dir {run}"]
    if composed := record.metadata.get("composed"):  # its config is of the sum alone
        parts = unique_names(slug(part["edit"]) for part in composed)
        lines = [f"erasure compose {' '.join(f'again/{part}' for part in parts)} --out {run}"]
        strengths = [part["strength"] for part in composed]
        if any(strength != 1 for strength in strengths):
            listed = ", ".join(f"{strength:g}" for strength in strengths)
            lines.insert(
                0, f"# strengths {listed}: set edit.strength of each, and compose in Python"
            )
    if record.figures_folder != ".":
        lines.append(" ".join(["erasure test --ckpt_path", run, *record.test_options]))
    lines += [attack_command(attack.outcome, run) for attack in record.attacks]
    if record.edit:
        lines.append(f"sha256sum {run}/edit.safetensors")
    return lines


def attack_command(outcome: Outcome, run: str) -> str:
    """The command that makes an attack again.

    Args:
        outcome: The attack's outcome.
        run: Folder of the run to attack.
    """
    protocol = outcome.protocol
    seeds = outcome.success["attacked"].seeds or 1
    sampling = {
        "seeds": seeds,
        "images": len(protocol.seeds) // seeds,
        "steps": protocol.steps,
        "guidance": protocol.guidance,
        "image_size": protocol.size,
        "scorer": _chosen_scorer(protocol),
    }
    options = {f"attack.{name}": value for name, value in sorted(outcome.arguments.items())}
    options |= {f"data.{name}": value for name, value in sampling.items()}
    command = f"erasure attack --ckpt_path {run} --attack {shlex.quote(outcome.attack)}"
    written = [
        f"--{name} {shlex.quote(value if isinstance(value, str) else json.dumps(value))}"
        for name, value in without_paths(options).items()
        if value is not None
    ]
    return " ".join([command, *written])


def _chosen_scorer(protocol: Protocol) -> str | None:
    """The scorer, unless it is the world's own, which an attack has by default."""
    world = find_world(protocol.backbone) if protocol.backbone in worlds() else None
    if world and Path(protocol.scorer).parts[-2:] == world.scorer.parts[-2:]:
        return None
    return protocol.scorer


def options_with_paths(record: RunRecord) -> list[str]:
    """Options of the config whose value was a path, to be replaced by the reader."""
    config = yaml.safe_load(record.config) if record.config else None
    return list(dict.fromkeys(_keys_of_paths(config)))


def _keys_of_paths(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _keys_of_paths(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _keys_of_paths(item, key)
    elif isinstance(value, str) and value.startswith(PATH_PLACEHOLDER):
        yield key
