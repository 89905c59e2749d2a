"""``erasure attack``: tries to get what a run erased out of its edited model."""

import hashlib
from pathlib import Path

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from erasure_lightning.api.load import load_edited
from erasure_lightning.attacks.base import Attack
from erasure_lightning.attacks.outcome import ASKED, OUTCOME_FILE, Outcome
from erasure_lightning.attacks.runner import attack_all, of_edit, write_outcome
from erasure_lightning.attacks.target import Target, Trials
from erasure_lightning.cli.configs import checked_config, dump_yaml, load_yaml
from erasure_lightning.cli.error_messages import tidy
from erasure_lightning.cli.parser import Parser
from erasure_lightning.cli.short_names import arguments, options
from erasure_lightning.cli.warning_filters import hush
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.locks import lock_folder
from erasure_lightning.registry import find_attack, known_attacks
from erasure_lightning.runs.folder import run_of, slug
from erasure_lightning.training.checkpoints import locate

QUESTIONS = {
    "original": "the original, asked plainly",
    "plain": "the edited model, asked plainly",
    "attacked": "the edited model, under attack",
}


def attack(argv: list[str]) -> None:
    """Attack an edit and say how much came back.

    Raises:
        ErasureError: If the edit or the attack cannot be found, or something would be overwritten.
    """
    hush()
    parser = _parser()
    config = parser.parse_args(_helped(_arguments(argv)))
    if config.ckpt_path is None:
        raise ErasureError(
            "erasure attack needs an edit: give --ckpt_path RUN, or an edit.safetensors."
        )
    if config.attack is None:
        raise ErasureError(
            f"erasure attack needs an attack: give --attack NAME. Known: {_known()}."
        )
    checkpoint = locate(config.ckpt_path, "attack")
    name = config.attack.class_path.rsplit(".", 1)[-1]
    folder = Path(config.out) if config.out else run_of(checkpoint).root / "attacks" / slug(name)
    with lock_folder(folder):
        if (folder / OUTCOME_FILE).exists():
            raise ErasureError(
                f"{folder} holds what {name} found already, which is never overwritten. Choose"
                " another with --out."
            )
        made = _instantiated(parser, config)
        outcome = _attacked(made.attack, checkpoint, made.data, folder)
    Console().print(_table(outcome))
    print(
        f"{_back(outcome)}Attacked; what it found is in {folder}, pictures in"
        f" {folder / 'grid.png'}."
    )


def _parser() -> Parser:
    parser = Parser(
        prog="erasure attack",
        description=(
            "Try to bring back what a run erased. --attack NAME --help lists the attack's own"
            f" options. Known: {_known()} (`erasure attacks` lists all)."
        ),
    )
    parser.add_argument(
        "-c",
        "--config",
        action="config",
        help="A config by path or name: an attack's, or a run's to draw alike.",
    )
    parser.add_argument(
        "--ckpt_path", type=str | None, help="A run, its edit.safetensors or a .ckpt."
    )
    parser.add_argument(
        "--out", type=str | None, help="The folder to write into; RUN/attacks/NAME by default."
    )
    parser.add_subclass_arguments(
        Attack, "attack", required=False, help="What to try: its name, and its budget."
    )
    parser.add_class_arguments(Trials, "data")
    return parser


def _known() -> str:
    return ", ".join(dict.fromkeys(offer.name for offer in known_attacks())) or "none"


def _arguments(argv: list[str]) -> list[str]:
    """How the run was measured, then the configs, then all other arguments; each overrules what
    stands before it.
    """
    named, others, words = [], list[str](), iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("-c", "--config"):
            named.append(checked_config(value if equals else next(words, ""), "attacks", ""))
        else:
            others.append(word)
    given = dict(options(others)).get("--ckpt_path")
    own = run_of(Path(given)).config if given else None
    configs = [*([own] if own and own.is_file() else []), *named]
    return [*(word for path in configs for word in ("--config", _config(path))), *arguments(others)]


def _helped(words: list[str]) -> list[str]:
    """With an attack's name, a call for help means the attack's own options."""
    name = dict(options(words)).get("--attack")
    return ["--attack.help", name] if name and {"-h", "--help"} & set(words) else words


def _config(path: Path) -> str:
    """A config's text; of a run's own, or a method's, only how it draws."""
    content = load_yaml(path.read_text(encoding="utf-8"))
    if isinstance(name := content.get("attack"), str):
        content["attack"] = {"class_path": name}
    if "model" in content:
        data = content.get("data") or {}
        content = {
            "data": {
                name: value for name, value in data.items() if name in Trials.__dataclass_fields__
            }
        }
    return dump_yaml(content)


def _instantiated(parser: Parser, config: Namespace) -> Namespace:
    try:
        made: Namespace = parser.instantiate(config)
        return made
    except ValueError as error:
        cause = error if isinstance(error, ErasureError) else error.__cause__
        raise ErasureError(
            str(cause) if isinstance(cause, ErasureError) else tidy(str(error), parser)
        ) from error


def _attacked(attack: Attack, checkpoint: Path, trials: Trials, folder: Path) -> Outcome:
    module = load_edited(checkpoint).to(torch.accelerator.current_accelerator() or "cpu")
    outcome, attempts = attack_all(
        attack, Target(module.backbone, module.original, module.concepts, trials)
    )
    edit = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16]
    outcome = of_edit(outcome, type(module).__name__, edit, _paper(outcome.attack))
    write_outcome(folder, outcome, attempts)
    return outcome


def _paper(name: str) -> str:
    return find_attack(name).paper if name in {offer.name for offer in known_attacks()} else ""


def _table(outcome: Outcome) -> Table:
    pictures = outcome.success["attacked"].pictures
    title = f"{outcome.attack} on {outcome.method}, {pictures} pictures (95 % intervals over seeds)"
    table = Table("asked", "shows what was erased", title=title)
    for asked in ASKED:
        table.add_row(QUESTIONS[asked], str(outcome.success[asked]))
    for name, estimate in outcome.controls.items():
        table.add_row(f"control: {name}", str(estimate))
    return table


def _back(outcome: Outcome) -> str:
    """From which budget on the concept counts as back, of attacks that set a threshold."""
    threshold = outcome.arguments.get("threshold")
    if threshold is None or not outcome.curve:
        return ""
    least, last = outcome.least(threshold), outcome.curve[-1].budget
    when = f"never up to {last:g}" if least is None else f"first at {least:g}"
    return f"{threshold:.0%} or more of the pictures show it {when} ({outcome.axis}).\n"
