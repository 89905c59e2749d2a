"""``erasure attack``: an attack on an edited model, and how much of the concept it restores."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from erasure_lightning.api.attack import attack_edit, attack_folder, check_no_outcome
from erasure_lightning.api.configs import config_content, dump_yaml, read_config
from erasure_lightning.api.quiet import silence
from erasure_lightning.attacks.base import Attack
from erasure_lightning.attacks.outcome import IMAGE_KINDS, Outcome
from erasure_lightning.attacks.target import AttackSettings
from erasure_lightning.cli.arguments import BACKBONE_HELP
from erasure_lightning.cli.error_messages import constructor_error
from erasure_lightning.cli.options import CONFIG_OPTIONS, Options
from erasure_lightning.cli.parser import Parser
from erasure_lightning.cli.short_names import full_words
from erasure_lightning.cli.warning_lines import format_warnings
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.earlier_names import renamed_config
from erasure_lightning.registry import ATTACK, known_offers
from erasure_lightning.runs.folder import run_of
from erasure_lightning.training.checkpoints import locate_checkpoint

#: Rows of the table, by the kind of their images.
_ROWS = {
    "original": "the original model, plain prompt",
    "plain": "the edited model, plain prompt",
    "attacked": "the edited model, under attack",
}


def run_attack(argv: list[str]) -> None:
    """Attack an edit and print the share of images that show the concept.

    Raises:
        ErasureError: If the edit or the attack is missing, or a file would be overwritten.
    """
    silence()
    format_warnings()
    parser = _parser()
    config = parser.parse_args(_with_attack_help(_arguments(argv)))
    if config.ckpt_path is None:
        raise ErasureError(
            "erasure attack needs an edit: give --ckpt_path RUN, or an edit.safetensors."
        )
    if config.attack is None:
        raise ErasureError(
            f"erasure attack needs an attack: give --attack NAME. Known: {_known()}."
        )
    checkpoint = locate_checkpoint(config.ckpt_path, "attack")
    name = config.attack.class_path.rsplit(".", 1)[-1]
    folder = Path(config.run_dir) if config.run_dir else attack_folder(checkpoint, name)
    check_no_outcome(folder, name)
    objects = _instantiated(parser, config)
    outcome = attack_edit(
        checkpoint, objects.attack, folder, objects.data, backbone=config.backbone
    )
    Console().print(_table(outcome))
    print(
        f"{_first_success(outcome)}Attacked; the outcome is in {folder}, images in"
        f" {folder / 'grid.png'}."
    )


def parsed_attack(argv: list[str]) -> AttackSettings:
    """The settings of an attack that was constructed from its arguments, without its edit.

    Args:
        argv: Arguments of ``erasure attack``.

    Raises:
        ErasureError: If `erasure attack` would refuse them.
    """
    silence()
    parser = _parser()
    config = parser.parse_args(_arguments(argv))
    settings: AttackSettings = _instantiated(parser, config).data
    return settings


def _instantiated(parser: Parser, config: Namespace) -> Namespace:
    """Attack and settings.

    Raises:
        ErasureError: If a constructor refuses its arguments, with its own message.
    """
    try:
        objects: Namespace = parser.instantiate(config)
    except ValueError as error:
        raise constructor_error(error, parser) from error
    return objects


def _parser() -> Parser:
    parser = Parser(
        prog="erasure attack",
        description=(
            "Try to restore what a run erased. --attack NAME --help lists the attack's own"
            f" options. Known: {_known()} (`erasure attacks` lists all)."
        ),
    )
    parser.add_argument(
        "-c",
        "--config",
        action="config",
        help="A config by path or name: an attack's, or a run's, to sample as it did.",
    )
    parser.add_argument(
        "--ckpt_path", type=str | None, help="A run, its edit.safetensors or a .ckpt."
    )
    parser.add_argument(
        "--run_dir", type=str | None, help="The folder to write into; by default RUN/attacks/NAME."
    )
    parser.add_argument("--backbone", type=str | None, help=BACKBONE_HELP)
    parser.add_subclass_arguments(
        Attack, "attack", required=False, help="The attack: its name, and its budget."
    )
    parser.add_class_arguments(AttackSettings, "data")
    return parser


def _known() -> str:
    return ", ".join(dict.fromkeys(offer.name for offer in known_offers(ATTACK))) or "none"


def _arguments(argv: list[str]) -> list[str]:
    """The options in order of precedence: the run's own config, the configs, all other options."""
    options = Options.read(argv)
    configs = [
        config_content(option.value or "", "attacks", "")
        for option in options
        if option.name in CONFIG_OPTIONS
    ]
    others = [option for option in options if option.name not in CONFIG_OPTIONS]
    checkpoint = options.get("--ckpt_path")
    if checkpoint and (own := run_of(Path(checkpoint)).config).is_file():
        configs.insert(0, read_config(own))
    return [
        *(word for config in configs for word in ("--config", _config(config))),
        *full_words(others),
    ]


def _with_attack_help(words: list[str]) -> list[str]:
    """With an attack's name, ``--help`` lists the attack's own options."""
    name = Options.read(words).get("--attack")
    return ["--attack.help", name] if name and {"-h", "--help"} & set(words) else words


def _config(content: dict[str, Any]) -> str:
    """A config's text; of the config of a run or a method only how it samples."""
    if isinstance(name := content.get("attack"), str):
        content["attack"] = {"class_path": name}
    if "model" in content:
        # Not the seeds: those of a measurement are images of each prompt, these are searches.
        known = AttackSettings.__dataclass_fields__.keys() - {"seeds"}
        data = renamed_config(content).get("data") or {}
        content = {"data": {name: value for name, value in data.items() if name in known}}
    return dump_yaml(content)


def _table(outcome: Outcome) -> Table:
    images = outcome.success["attacked"].images
    title = f"{outcome.attack} on {outcome.method}, {images} images (95 % intervals over seeds)"
    table = Table("", "share that shows the concept", title=title)
    for whose in IMAGE_KINDS:
        table.add_row(_ROWS[whose], str(outcome.success[whose]))
    for name, estimate in outcome.controls.items():
        table.add_row(f"control: {name}", str(estimate))
    return table


def _first_success(outcome: Outcome) -> str:
    """The budget at which success passes the threshold, for attacks that set a threshold."""
    threshold = outcome.arguments.get("threshold")
    if threshold is None or not outcome.curve:
        return ""
    least = outcome.smallest_budget(threshold)
    last = outcome.curve[-1].budget
    when = f"never up to {last:g}" if least is None else f"first at {least:g}"
    return f"{threshold:.0%} or more of the images show it {when} ({outcome.axis}).\n"
