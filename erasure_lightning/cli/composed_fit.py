"""``erasure fit`` of a config with parts: each is fitted from the original, and the edits added."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any

from erasure_lightning.api.compose import compose, save_composition
from erasure_lightning.api.configs import config_content, dump_yaml, load_yaml
from erasure_lightning.benchmark.jobs import command_options
from erasure_lightning.benchmark.suite import MethodEntry
from erasure_lightning.benchmark.suite_reader import read_parts
from erasure_lightning.callbacks.interrupt import Interrupted
from erasure_lightning.cli.options import CONFIG_OPTIONS, Option, Options
from erasure_lightning.cli.parsed_fit import parsed_fit
from erasure_lightning.cli.rank import launched_ranks
from erasure_lightning.cli.run import run
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.differences import first_difference
from erasure_lightning.files.earlier_names import renamed_config
from erasure_lightning.files.locks import lock_folder
from erasure_lightning.files.writing import write_json
from erasure_lightning.runs.folder import Run, default_run
from erasure_lightning.training.adapter_methods import AdapterEdit, PartErasure
from erasure_lightning.training.inference_rule import InferenceRule

#: What a part's config may have in another way than the command that finds it finished.
_FREE_OF_THE_TRAINER = {"accelerator", "strategy", "devices", "num_nodes", "logger"}
_FREE_OF_THE_TRAINER |= {"enable_progress_bar", "log_every_n_steps"}

#: Options of the fit as a whole, which no part has.
_OF_THE_WHOLE = (*CONFIG_OPTIONS, "--run_dir", "--print_config")

#: What all parts must have in common, beside the names of their concepts.
_COMMON = ("backbone", "loras", "base_edit")


@dataclass(frozen=True)
class _Part:
    """A part of a composed fit.

    Args:
        name: Its name, and its folder's.
        words: Arguments of its fit, without its folder.
        config: Its whole config, parsed.
    """

    name: str
    words: list[str]
    config: dict[str, Any]

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of its method."""
        return dict(self.config["model"]["init_args"])

    @property
    def concepts(self) -> list[str]:
        """Names of its concepts."""
        return [concept["name"] for concept in self.model["concepts"]]


def fit_parts(options: Options, file: str) -> None:
    """Fit the parts of a config, add their edits, and measure the sum.

    All options but the folder are those of every part. A part whose folder, ``parts/NAME`` in the
    run's, holds its edit or a checkpoint is not fitted again.

    Args:
        options: Options of ``erasure fit``.
        file: The config with parts.

    Raises:
        ErasureError: If a part is wrong or cannot be added to the others, before any is fitted.
        Interrupted: If a signal came.
    """
    name = Path(file).stem
    others = _of_parts(options)
    if helps := [o for o in others if o.name in ("-h", "--help") or o.name.endswith(".help")]:
        run("fit", helps[0].words())
    with TemporaryDirectory() as scratch:
        parts = parsed_parts(options, file, Path(scratch))
        if "--print_config" in options.names():
            print("\n".join(f"# {part.name}\n{dump_yaml(part.config)}" for part in parts), end="")
            return
        folder = options.get("--run_dir")
        root = Run(Path(folder)) if folder else default_run(name, parts[0].concepts)
        try:
            with lock_folder(root.root):
                if not (parts[0].config["measure"] and root.edit.exists() and root.command):
                    root.check_unused()  # else the sum alone is to be measured
                _fit_and_add(parts, root, others)
        except Interrupted:
            print("The same command as before resumes all parts.", flush=True)
            raise


def _fit_and_add(parts: Sequence[_Part], root: Run, others: Sequence[Option]) -> None:
    """Fit all parts, or what their folders lack; add the edits, and measure the sum."""
    runs = [Run(root.root / "parts" / part.name) for part in parts]
    for part, run_of_part in zip(parts, runs, strict=True):
        _fit_part(part, run_of_part)
    if parts[0].config["trainer"]["fast_dev_run"]:
        return
    _add(root, runs, _measurement(others, parts[0]))
    if parts[0].config["measure"]:
        _measure(root, others)
    grid = f", before and after in {root.grid}" if root.grid.exists() else ""
    print(f"Erased; the edit is in {root.root}{grid}.")


def parsed_parts(options: Options, file: str, scratch: Path) -> list[_Part]:
    """The parts of a config, each checked as `erasure fit` would, and all of them together.

    Args:
        options: Options of ``erasure fit``.
        file: The config with parts.
        scratch: Where the config of each part is written.

    Raises:
        ErasureError: If a part is wrong or cannot be added to the others.
    """
    if [o for o in options if o.name in CONFIG_OPTIONS][1:] or "--ckpt_path" in options.names():
        raise ErasureError(
            f"{file} has parts, and is the only config of its command, without --ckpt_path: the"
            " same command resumes a run of parts."
        )
    entries = read_parts(config_content(file), file, config_content)
    parts = [_parsed(entry, _of_parts(options), scratch) for entry in entries]
    _check_together(parts, file)
    return parts


def _of_parts(options: Options) -> list[Option]:
    """The options that every part has."""
    return [option for option in options if option.name not in _OF_THE_WHOLE]


def _parsed(entry: MethodEntry, others: Sequence[Option], scratch: Path) -> _Part:
    """A part with its parsed config.

    Raises:
        ErasureError: If `erasure fit` would refuse it.
    """
    config = scratch / f"{entry.name}.yaml"
    config.write_text(dump_yaml(entry.config), encoding="utf-8")
    shared = [word for option in others for word in option.words()]
    words = ["--config", str(config), *command_options(entry.options), *shared]
    try:
        return _Part(entry.name, words, parsed_fit(words))
    except ErasureError as error:
        raise ErasureError(f"The part {entry.name} cannot run: {error}") from error


def _check_together(parts: Sequence[_Part], file: str) -> None:
    """Raise if the edits of parts could not be added to one.

    Raises:
        ErasureError: If one is no change of weights, two differ in concepts or model, or several
            devices are to be used.
    """
    first = parts[0]
    for part in parts:
        method = resolve_name(part.config["model"]["class_path"])
        has_adapters = issubclass(method, AdapterEdit) and not issubclass(method, PartErasure)
        if has_adapters or issubclass(method, InferenceRule):
            raise ErasureError(
                f"{file}: the part {part.name} needs to edit weights; found {method.__name__},"
                " whose adapters act by prompt or image and cannot be added. Apply its edit beside"
                " the other with apply_edit, last."
            )
        if part.concepts != first.concepts:
            raise ErasureError(
                f"{file} needs parts with the same concepts; found {', '.join(first.concepts)}"
                f" ({first.name}) and {', '.join(part.concepts)} ({part.name}). Give both"
                " --model.concepts, or add finished runs with erasure compose."
            )
        both = [{key: p.model.get(key) for key in _COMMON} for p in (first, part)]
        if difference := first_difference(*both):
            raise ErasureError(
                f"{file} needs parts on the same model; {first.name} and {part.name} differ in"
                f" {difference}. Give both --model.{difference.partition(':')[0].split('.')[0]}."
            )
        trainer = part.config["trainer"]
        several = str(trainer["devices"]) not in ("auto", "1") or trainer["num_nodes"] != 1
        if several or launched_ranks():
            raise ErasureError(
                f"{file} has parts, which are fitted one after another on one device. Fit each"
                " with a command of its own on several, and add the runs with erasure compose."
            )


def _fit_part(part: _Part, folder: Run) -> None:
    """Fit a part, or what its folder lacks of it.

    Raises:
        ErasureError: If the folder holds a fit of another config.
    """
    finished = folder.edit.exists()
    resumes = folder.last.exists()
    if finished or resumes:
        before = renamed_config(load_yaml(folder.config.read_text(encoding="utf-8")))
        if difference := first_difference(_compared(before), _compared(part.config)):
            raise ErasureError(
                f"{folder.root} holds a fit of another config. They differ in {difference} (there"
                " and here). Choose another --run_dir, or delete it."
            )
    if finished:
        print(f"{part.name}: fitted already, in {folder.root}.")
        return
    new = [*part.words, "--run_dir", str(folder.root), "--measure", "false"]
    words = ["--ckpt_path", str(folder.root)] if resumes else new
    if part.config["trainer"]["devices"] == "auto":
        words += ["--trainer.devices", "1"]
    run("fit", words)


def _compared(config: dict[str, Any]) -> dict[str, Any]:
    """What of a part's config decides on its edit."""
    trainer = config["trainer"]
    chosen = {key: trainer[key] for key in trainer if key not in _FREE_OF_THE_TRAINER}
    data = {key: config["data"][key] for key in ("batch_size", "steps_per_concept", "templates")}
    return {"model": config["model"], "data": data, "trainer": chosen}


def _measurement(others: Sequence[Option], part: _Part) -> dict[str, Any]:
    """The arguments of `PromptData` that the options give, by which the sum is measured."""
    options = [o.name.removesuffix("+") for o in others if o.name.startswith("--data.")]
    names = [option.removeprefix("--data.") for option in options]
    return {name: part.config["data"][name] for name in names}


def _add(root: Run, parts: Sequence[Run], data: Mapping[str, Any]) -> None:
    """Write the sum of the parts' edits, with the sum of their costs."""
    edit = compose(*(part.edit for part in parts))
    costs = [json.loads(part.cost.read_text(encoding="utf-8")) for part in parts]
    total = {key: sum(cost[key] for cost in costs) for key in costs[0]}
    # The edit last: a run with an edit is complete but for its measurement.
    write_json(root.cost, total | {"peak_gib": max(cost["peak_gib"] for cost in costs)})
    save_composition(edit, root.edit, data)
    print(edit.report())


def _measure(root: Run, others: Sequence[Option]) -> None:
    """Measure the sum as a fit is measured."""
    shared = [o for o in others if o.name.startswith(("--data.", "--trainer."))]
    words = [word for option in shared for word in option.words()]
    folder = root.second_measurement
    root.discard_measurement()
    run("test", ["--ckpt_path", str(root.root), "--run_dir", str(folder), *words])
    root.finish_measurement()
    print(f"Figures and images were moved from {folder} to {root.root}.")
