"""Attacks on an edit: how much of the concept is restored."""

from pathlib import Path

from erasure_lightning.api.accelerator import default_device
from erasure_lightning.api.load import load_edited
from erasure_lightning.attacks.base import Attack
from erasure_lightning.attacks.outcome import OUTCOME_FILE, Outcome
from erasure_lightning.attacks.runner import attack_concepts, with_edit, write_outcome
from erasure_lightning.attacks.target import AttackSettings, AttackTarget
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.locks import lock_folder
from erasure_lightning.registry import ATTACK, known_offers
from erasure_lightning.runs.folder import run_of, slug
from erasure_lightning.training.checkpoints import locate_checkpoint


def attack_edit(
    checkpoint: str | Path,
    attack: Attack,
    run_dir: Path | None = None,
    settings: AttackSettings | None = None,
    backbone: str | None = None,
) -> Outcome:
    """Attack an edited model, and write the outcome with its images into a folder.

    A line is printed after each case.

    Args:
        checkpoint: A run's folder, its ``edit.safetensors`` or a ``.ckpt``.
        attack: The attack with its budget, such as `UnlearnDiffAtk`.
        run_dir: The folder to write into; ``RUN/attacks/NAME`` by default (see `attack_folder`).
        settings: Number of seeds and images, and how images are sampled and scored.
        backbone: Where the base model is now; by default as the edit names it.

    Raises:
        ErasureError: If the edit cannot be read, no scorer fits its images, or the folder holds
            an outcome already.
    """
    path = locate_checkpoint(str(checkpoint), "attack")
    name = type(attack).__name__
    folder = run_dir or attack_folder(path, name)
    with lock_folder(folder):
        check_no_outcome(folder, name)
        module = load_edited(path, backbone).to(default_device())
        target = AttackTarget(
            module.backbone, module.unedited, module.concepts, settings or AttackSettings()
        )
        outcome, scored = attack_concepts(attack, target)
        outcome = with_edit(outcome, type(module).__name__, path, paper_of(name))
        write_outcome(folder, outcome, scored)
    return outcome


def attack_folder(checkpoint: Path, attack: str) -> Path:
    """Where the outcome of an attack is written by default.

    Args:
        checkpoint: The edit's file, as `locate_checkpoint` returns it.
        attack: Class name of the attack.
    """
    return run_of(checkpoint).root / "attacks" / slug(attack)


def check_no_outcome(folder: Path, attack: str) -> None:
    """Raise if a folder holds the outcome of an attack.

    Raises:
        ErasureError: If so.
    """
    if (folder / OUTCOME_FILE).exists():
        raise ErasureError(
            f"{folder} holds an outcome of {attack} already, which is not overwritten. Choose"
            " another folder with --run_dir."
        )


def paper_of(name: str) -> str:
    """Where an attack was published; empty for an attack that no package registers."""
    return next((offer.paper for offer in known_offers(ATTACK) if offer.name == name), "")
