"""Two concepts erased by composed edits, sequentially or jointly: ``benchmarks/compose.py``.

Cigarette (to lollipop) and guitar (to drum) on the emoji world, with each method's shipped config
(of ESD the short schedule of docs/speed.md). ``cigarette only`` and ``guitar only`` erase a concept
each; ``composed`` is `erasure compose` of the two; ``sequential`` erases the guitar from a model
that has the edit of the cigarette (``--model.base_edit``); ``joint`` is one fit of both. All are
measured alike, each concept on its own prompts: seeds 0, 1, 2, DDIM with 20 steps, guidance 4, and
27 other labels. Finished runs in ``--out`` are reused.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rows import head, line
from torch import Tensor

from erasure_lightning.api.load import load_edited
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.callbacks.measure import EditMetrics
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.vocabulary import Vocabulary, random_subset
from erasure_lightning.data.image_plan import ImageRequest
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.metrics.scorer import Scorer

ONE = Concept("cigarette", "lollipop", ("smoking", "tobacco", "cigar", "smoker"))
OTHER = Concept("guitar", "drum", ("electric guitar", "acoustic strings", "rock band instrument"))
CONCEPTS = {"cigarette only": [ONE], "guitar only": [OTHER], "joint": [ONE, OTHER]}
HEAD = ("method", "edit", "cigarette", "guitar", "retain", "feature", "L1", "seconds")

#: Options beside the shipped configs: the short schedule of docs/speed.md.
OPTIONS = {
    "esd": [
        "--model.lr",
        "4e-4",
        "--model.latents.trajectories",
        "8",
        "--data.steps_per_concept",
        "16",
    ],
}

BATCH, SEEDS, OTHERS = 32, 3, 27

#: The unedited model's images of each batch.
BEFORE: dict[tuple[ImageRequest, ...], Tensor] = {}


def erasure(folder: Path, *words: str) -> None:
    """One command, unless its edit is there already."""
    if (folder / "edit.safetensors").exists():
        return
    command = [sys.executable, "-m", "erasure_lightning", *words]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


def fit(folder: Path, method: str, concepts: list[Concept], *more: str) -> float:
    """Seconds of a fit."""
    listed = [{"name": c.name, "anchor": c.anchor, "domain": list(c.domain)} for c in concepts]
    own = [*OPTIONS.get(method, []), *more]
    words = ["--config", f"{method}.yaml", "--model.concepts", json.dumps(listed), *own]
    erasure(folder, "fit", *words, "--measure", "false", "--run_dir", str(folder))
    return json.loads((folder / "cost.json").read_text())["seconds"]


def drawn(model: Backbone, batch: list[ImageRequest]) -> Tensor:
    """Images of requests of equal settings."""
    steps, guidance = batch[0].steps, batch[0].guidance
    words = [request.prompt for request in batch], [request.seed for request in batch]
    return sample_images(model, *words, steps=steps, guidance=guidance)


@torch.no_grad()
def figures(folder: Path) -> dict[str, str]:
    """Own of both concepts, and what happened to all else."""
    module = load_edited(folder / "edit.safetensors")
    world = module.backbone.world
    scorer = Scorer.load(world.scorer)
    vocabularies = {concept.name: Vocabulary(world, [concept]) for concept in (ONE, OTHER)}
    retained = random_subset(Vocabulary(world, [ONE, OTHER]).others, OTHERS)
    caption = world.captions["label"][1]
    rows = {
        name: [("efficacy", prompt, answer) for prompt, answer in vocabulary.concept_prompts()]
        for name, vocabulary in vocabularies.items()
    }
    rows["retain"] = [("specificity", caption.format(label), label) for label in retained]
    figures = {}
    for name, prompts in rows.items():
        vocabulary = vocabularies.get(name, Vocabulary(world, [ONE, OTHER]))
        requests = [
            ImageRequest(prompt, seed, group, "", answer, world.steps, world.guidance)
            for group, prompt, answer in prompts
            for seed in range(SEEDS)
        ]
        metrics = EditMetrics(scorer, vocabulary, requests, torch.device("cpu"))
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            key = tuple(batch)
            if key not in BEFORE:
                BEFORE[key] = drawn(module.unedited, batch)
            metrics.update(batch, BEFORE[key], drawn(module.backbone, batch))
        estimates = metrics.estimates()
        group = prompts[0][0]
        figures[name] = f"{estimates[group]['recognized']['after'].mean:.3f}"
        if "structure" in estimates:
            structure = estimates["structure"]
            figures["feature"] = f"{structure['similarity']['after'].mean:.3f}"
            figures["L1"] = f"{structure['distance']['after'].mean:.3f}"
    return figures


def rows_of(method: str, out: Path) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, figures and seconds of each edit of a method."""
    folders = {name: out / f"{method}-{name.replace(' ', '-')}" for name in CONCEPTS}
    seconds = {name: fit(folders[name], method, listed) for name, listed in CONCEPTS.items()}
    one, other, joint = CONCEPTS
    sequential, composed = out / f"{method}-sequential", out / f"{method}-composed"
    base = ["--model.base_edit", str(folders[one])]
    seconds["sequential"] = seconds[one] + fit(sequential, method, [OTHER], *base)
    runs = [str(folders[name]) for name in (one, other)]
    erasure(composed, "compose", *runs, "--out", str(composed))
    seconds["composed"] = seconds[one] + seconds[other]
    folders |= {"composed": composed, "sequential": sequential}
    for name in (one, other, "composed", "sequential", joint):
        yield name, figures(folders[name]), seconds[name]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="uce,esd,sage")
    parser.add_argument("--out", type=Path, default=Path("runs/compose"))
    options = parser.parse_args()
    print(head(list(HEAD)))
    for method in options.methods.split(","):
        for name, figures, seconds in rows_of(method, options.out):
            values = [figures[key] for key in HEAD[2:-1]]
            print(line([method.upper(), name, *values, f"{seconds:.0f}"]), flush=True)


if __name__ == "__main__":
    main()
