"""Compares edits of two commits: ``python benchmarks/equality.py --out NEW --against OLD``.

Every shipped config, the plugins' too, is fitted for a few steps from one seed on one core, and its
edit's tensors are written to ``--out``: NAME.safetensors, and NAME.json with their shapes. Edits
that the same clean commit wrote there are reused. ``--checkout`` names the code that runs. With
``--against`` a table compares the edits with another such folder; exit code 1 if an edit differs by
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
import yaml
from rows import head, line
from safetensors.torch import load_file, save_file
from torch import Tensor

#: Largest absolute difference between equal edits.
TOLERANCE = 1e-6

#: Arguments of every fit, and further ones of single configs.
COMMON = ["--measure", "false", "--trainer.max_steps", "8"]  # SAGE's self-check begins at step 5
OWN = {
    "advunlearn": ["--trainer.max_steps", "24"],  # its attack begins at step 20
    "sdd": ["--trainer.max_steps", "32"],  # its student's trajectories are drawn again at step 30
    "realera-closed-form": ["--trainer.max_steps", "1"],  # closed forms are one step
    "rece": ["--trainer.max_steps", "1"],
    "speed": ["--trainer.max_steps", "1"],
    "uce": ["--trainer.max_steps", "1"],
}

#: Names of a model's parts in edit files, and in a pipeline.
PARTS = (
    (r"^denoiser\.", "unet."),
    (r"^text_encoders\.0\.(model\.)?", "text_encoder."),
    (r"^text_encoders\.1\.(model\.)?", "text_encoder_2."),
    (r"^(text_encoder(?:_2)?)\.text_model\.", r"\1."),  # older versions of transformers
)

HEAD = ["config", "tensors", "moved", "largest difference", "relative to its move", "equal to 1e-6"]


class Edit(NamedTuple):
    """Tensors by name, and the largest change of each: from the original, or in adapters from 0."""

    tensors: dict[str, Tensor]
    moved: dict[str, float]


def component_name(name: str) -> str:
    """A tensor's name in a pipeline, from its name in an edit file."""
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


def original(checkout: Path, config: Path) -> dict[str, Tensor]:
    """The weights of a config's world, by their names in a pipeline."""
    arguments = yaml.safe_load(config.read_text()).get("model", {}).get("init_args", {})
    worlds = ("emoji-world", arguments.get("backbone", "emoji-world"))  # with parts of the first
    files = [f for w in worlds for f in checkout.glob(f"plugins/{w}/*/pipeline/*/*.safetensors")]
    tensors = {f"{path.parent.name}.{n}": t for path in files for n, t in load_file(path).items()}
    return named(tensors)


def commit(checkout: Path) -> str | None:
    """The commit of a checkout without uncommitted changes; None with changes."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()

    return None if git("status", "--porcelain") else git("rev-parse", "HEAD")


def fit(config: Path, arguments: list[str], checkout: Path) -> dict[str, Tensor]:
    """Fit a config; returns the edit's tensors by their names in its file.

    Args:
        config: The config's file.
        arguments: Further arguments of `erasure fit`.
        checkout: The code that runs; it is first on the path.

    Raises:
        RuntimeError: If the fit fails, with what it printed.
    """
    paths = os.pathsep.join(map(str, (checkout, *sorted(checkout.glob("plugins/*")))))
    one_core = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", "erasure_lightning", "fit", "--config", str(config)]
        command += [*arguments, "--run_dir", str(run)]
        result = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | one_core | {"PYTHONPATH": paths},
            cwd=folder,
            text=True,
        )
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{result.stdout}")
        return load_file(run / "edit.safetensors")


def save_edit(name: str, config: Path, chosen: argparse.Namespace) -> None:
    """Fit a config and save its edit, unless the same commit has saved it."""
    arguments = [*COMMON, "--model.seed", str(chosen.seed), *OWN.get(name, [])]
    record: dict[str, Any] = {"commit": commit(chosen.checkout), "arguments": arguments}
    tensors = chosen.out / f"{name}.safetensors"
    record_file = chosen.out / f"{name}.json"
    if record_file.exists():
        before = json.loads(record_file.read_text())
        if record["commit"] and {key: before[key] for key in record} == record:
            return
    record_file.unlink(missing_ok=True)  # written last: an edit without it is unfinished
    start = time.perf_counter()
    edit = fit(config, arguments, chosen.checkout)
    weights = original(chosen.checkout, config)
    moved = {n: largest(t - weights.get(n, torch.zeros(()))) for n, t in named(edit).items()}
    shapes = {n: list(t.shape) for n, t in edit.items()}
    save_file(edit, tensors)
    seconds = round(time.perf_counter() - start, 1)
    record |= {"seconds": seconds, "shapes": shapes, "moved": moved}
    record_file.write_text(json.dumps(record, indent=1))
    print(f"{name}: {len(edit)} tensors, {seconds} s", file=sys.stderr, flush=True)


def read_edits(folder: Path) -> dict[str, Edit]:
    """The finished edits of a folder."""
    edits = {}
    for record_file in sorted(folder.glob("*.json")):
        tensors = named(load_file(record_file.with_suffix(".safetensors")))
        edits[record_file.stem] = Edit(tensors, json.loads(record_file.read_text())["moved"])
    return edits


def compare(name: str, new: Edit, old: Edit) -> tuple[list[str], bool]:
    """A row, and whether the edits have equal names, shapes and values."""
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
    """Print the comparison as Markdown; returns whether both sides have the same, equal edits."""
    print(head(HEAD))
    all_equal = True
    for name in sorted(new.keys() & old.keys()):
        cells, equal = compare(name, new[name], old[name])
        print(line(cells))
        all_equal &= equal
    sides = {"--out": new.keys() - old.keys(), "--against": old.keys() - new.keys()}
    for side, names in sides.items():
        if names:
            print(f"\nOnly in {side}: {', '.join(sorted(names))}")
    return all_equal and new.keys() == old.keys()


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    own = Path(__file__).resolve().parents[1]
    parser.add_argument("--out", type=Path, required=True, help="folder of the edits")
    parser.add_argument("--against", type=Path, help="another such folder")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of configs")
    parser.add_argument("--checkout", type=Path, default=own, help="the code that runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.checkout = options.checkout.resolve()
    if not (options.checkout / "erasure_lightning").is_dir():
        parser.error(f"{options.checkout} is no checkout of erasure_lightning")
    configs = shipped(options.checkout)
    if unknown := set(options.only or ()) - configs.keys():
        parser.error(
            f"no such config: {', '.join(sorted(unknown))}; there are {', '.join(configs)}"
        )
    return options


def main(options: argparse.Namespace) -> int:
    """Fit the missing edits, then compare."""
    configs = shipped(options.checkout)
    failed = False
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or configs:
        try:
            save_edit(name, configs[name], options)
        except RuntimeError as error:
            print(error, file=sys.stderr, flush=True)
            failed = True
    if not options.against:
        return int(failed)
    new, old = read_edits(options.out), read_edits(options.against)
    if options.only:
        new, old = ({n: side[n] for n in options.only if n in side} for side in (new, old))
    new = {
        name: edit for name, edit in new.items() if name in configs
    }  # configs of other code are left out
    return int(not table(new, old) or failed)


if __name__ == "__main__":
    sys.exit(main(parse_options()))
