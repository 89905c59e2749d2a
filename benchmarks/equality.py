"""Whether a change moves an edit: ``python benchmarks/equality.py --out NEW --against OLD``.

Every shipped config, the plugins' too, is fitted for a few steps from one seed on one core, and its
edit's tensors are kept in ``--out``: NAME.safetensors, and NAME.json with their shapes. They are
taken from there when the same commit made them, with no change since. ``--checkout``: whose code.
With ``--against`` a table compares them with another such folder; exit code 1 if an edit differs by
more than 1e-6, or is missing.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from rows import head, line
from safetensors.torch import load_file, save_file
from torch import Tensor

#: Largest difference of a number between edits that are equal.
TOLERANCE = 1e-6

#: Of every fit; those of a config come behind and win.
GIVEN = ["--measure", "false", "--trainer.max_steps", "8"]  # SAGE's self-check begins at step 5
OWN = {
    "advunlearn": ["--trainer.max_steps", "24"],  # its attack begins at step 20
    "sdd": ["--trainer.max_steps", "32"],  # its student's trajectories are drawn again at step 30
    "realera-closed-form": ["--trainer.max_steps", "1"],  # closed forms are one step
    "rece": ["--trainer.max_steps", "1"],
    "speed": ["--trainer.max_steps", "1"],
    "uce": ["--trainer.max_steps", "1"],
}

#: What parts of a model were called in edit files, and are called by a pipeline.
PARTS = (
    (r"^denoiser\.", "unet."),
    (r"^text_encoders\.0\.(model\.)?", "text_encoder."),
    (r"^text_encoders\.1\.(model\.)?", "text_encoder_2."),
    (r"^(text_encoder(?:_2)?)\.text_model\.", r"\1."),  # older versions of transformers
)

HEAD = ["config", "tensors", "moved", "largest difference", "relative to its move", "equal to 1e-6"]


class Edit(NamedTuple):
    """Tensors by name, and how far each moved at most: from the original, or in adapters from 0."""

    tensors: dict[str, Tensor]
    moved: dict[str, float]


def component_name(name: str) -> str:
    """A tensor's name in a pipeline, whatever the edit file called it."""
    for pattern, component in PARTS:
        name = re.sub(pattern, component, name)
    return name


def named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names in a pipeline, in float64, where differences are exact."""
    return {component_name(name): tensor.double() for name, tensor in tensors.items()}


def largest(values: Tensor) -> float:
    """The largest absolute value; NaN if there is one."""
    return float(values.abs().max()) if values.numel() else 0.0


def shipped(checkout: Path) -> dict[str, Path]:
    """Configs by name: the framework's and the plugins'."""
    paths = [*checkout.glob("configs/*.yaml"), *checkout.glob("plugins/*/*/configs/*.yaml")]
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def original(checkout: Path) -> dict[str, Tensor]:
    """The emoji world's weights, by their names in a pipeline."""
    files = checkout.glob("plugins/emoji-world/*/pipeline/*/*.safetensors")
    tensors = {f"{path.parent.name}.{n}": t for path in files for n, t in load_file(path).items()}
    return named(tensors)


def commit(checkout: Path) -> str | None:
    """The checkout's commit, if nothing was changed since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()

    return None if git("status", "--porcelain") else git("rev-parse", "HEAD")


def fit(config: Path, given: list[str], checkout: Path) -> dict[str, Tensor]:
    """An edit's tensors, as its file names them.

    Args:
        config: The config's file.
        given: Further arguments of `erasure fit`.
        checkout: Whose code runs; no other lies on the path before it.

    Raises:
        RuntimeError: If the fit fails, with what it printed.
    """
    paths = os.pathsep.join(map(str, (checkout, *sorted(checkout.glob("plugins/*")))))
    one_core = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", "erasure_lightning", "fit", "--config", str(config)]
        command += [*given, "--run_dir", str(run)]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | one_core | {"PYTHONPATH": paths},
            cwd=folder,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
        return load_file(run / "edit.safetensors")


def keep(name: str, config: Path, chosen: argparse.Namespace) -> None:
    """Fit a config and keep its edit, unless the same code has done so."""
    given = [*GIVEN, "--model.seed", str(chosen.seed), *OWN.get(name, [])]
    made: dict[str, Any] = {"commit": commit(chosen.checkout), "arguments": given}
    tensors, about = chosen.out / f"{name}.safetensors", chosen.out / f"{name}.json"
    if about.exists():
        before = json.loads(about.read_text())
        if made["commit"] and {key: before[key] for key in made} == made:
            return
    about.unlink(missing_ok=True)  # written last: an edit without it is unfinished
    begun = time.perf_counter()
    edit = fit(config, given, chosen.checkout)
    weights = original(chosen.checkout)
    moved = {n: largest(t - weights.get(n, torch.zeros(()))) for n, t in named(edit).items()}
    shapes = {n: list(t.shape) for n, t in edit.items()}
    save_file(edit, tensors)
    seconds = round(time.perf_counter() - begun, 1)
    made |= {"seconds": seconds, "shapes": shapes, "moved": moved}
    about.write_text(json.dumps(made, indent=1))
    print(f"{name}: {len(edit)} tensors, {seconds} s", file=sys.stderr, flush=True)


def kept(folder: Path) -> dict[str, Edit]:
    """Every finished edit of a folder."""
    edits = {}
    for about in sorted(folder.glob("*.json")):
        tensors = named(load_file(about.with_suffix(".safetensors")))
        edits[about.stem] = Edit(tensors, json.loads(about.read_text())["moved"])
    return edits


def compared(name: str, new: Edit, old: Edit) -> tuple[list[str], bool]:
    """A row, and whether the edits are equal: by names, shapes and numbers."""
    both = new.tensors.keys() & old.tensors.keys()
    both = {n for n in both if new.tensors[n].shape == old.tensors[n].shape}
    alone = len(new.tensors.keys() | old.tensors.keys()) - len(both)
    differences = {n: largest(new.tensors[n] - old.tensors[n]) for n in sorted(both)}
    differs = torch.tensor(list(differences.values()), dtype=torch.float64)
    moves = torch.tensor([old.moved[n] for n in differences], dtype=torch.float64)
    relative = largest(torch.where(differs == 0, 0, differs / moves))
    furthest = largest(differs)
    equal = bool(both) and not alone and furthest <= TOLERANCE  # NaN is not
    count = f"{len(both)}, and {alone} of one side or other shapes" if alone else len(both)
    figures = [f"{figure:.2g}" for figure in (largest(moves), furthest, relative)]
    return [name, str(count), *figures, "yes" if equal else "**no**"], equal


def table(new: dict[str, Edit], old: dict[str, Edit]) -> bool:
    """Print the comparison as Markdown; whether every edit is there twice, and equal."""
    print(head(HEAD))
    every = True
    for name in sorted(new.keys() & old.keys()):
        cells, equal = compared(name, new[name], old[name])
        print(line(cells))
        every &= equal
    sides = {"--out": new.keys() - old.keys(), "--against": old.keys() - new.keys()}
    for side, names in sides.items():
        if names:
            print(f"\nOnly in {side}: {', '.join(sorted(names))}")
    return every and new.keys() == old.keys()


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    own = Path(__file__).resolve().parents[1]
    parser.add_argument("--out", type=Path, required=True, help="folder of the edits")
    parser.add_argument("--against", type=Path, help="another such folder")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of configs")
    parser.add_argument("--checkout", type=Path, default=own, help="whose code runs")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.checkout = given.checkout.resolve()
    if not (given.checkout / "erasure_lightning").is_dir():
        parser.error(f"{given.checkout} is no checkout of erasure_lightning")
    configs = shipped(given.checkout)
    if unknown := set(given.only or ()) - configs.keys():
        missing, there = ", ".join(sorted(unknown)), ", ".join(configs)
        parser.error(f"no such config: {missing}; there are {there}")
    return given


def main(given: argparse.Namespace) -> int:
    """Fit what is not there yet, then compare."""
    configs, failed = shipped(given.checkout), False
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only or configs:
        try:
            keep(name, configs[name], given)
        except RuntimeError as error:
            print(error, file=sys.stderr, flush=True)
            failed = True
    if not given.against:
        return int(failed)
    new, old = kept(given.out), kept(given.against)
    if given.only:
        new, old = ({n: side[n] for n in given.only if n in side} for side in (new, old))
    new = {name: edit for name, edit in new.items() if name in configs}  # not one of earlier code
    return int(not table(new, old) or failed)


if __name__ == "__main__":
    sys.exit(main(options()))
