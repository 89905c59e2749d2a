"""Writes run folders like those of `erasure fit`, without a model."""

import csv
import json
from dataclasses import replace

import numpy
import yaml
from PIL import Image
from safetensors.numpy import save

from erasure_lightning.attacks.outcome import CaseOutcome, CurvePoint, Outcome
from erasure_lightning.files.writing import SAMPLES_COLUMNS
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import Protocol, Result

HOSTILE = "<script>alert(1)</script>"

VERSIONS = {"erasure-lightning": "0.1.0", "torch": "2.13.0"}

PROTOCOL = Protocol(
    prompts={
        "efficacy": ["a cat", "cat"],
        "generality": ["a kitten"],
        "specificity": ["a boat", "a dog"],
    },
    seeds=[0, 1, 2],
    steps=4,
    guidance=3.0,
    size=64,
    sampler="DDIMScheduler",
    scorer_fingerprint="5c07e",
    backbone_fingerprint="ba5e",
    vocabulary="v",
    backbone="/home/somebody/models/sd",
    scorer="/home/somebody/scorer",
    versions=VERSIONS,
)


def estimate(mean, low=None, high=None, images=6):
    return Estimate(mean, mean if low is None else low, mean if high is None else high, 3, images)


def recognized(before, after):
    return {"recognized": {"before": before, "after": after}}


ESTIMATES = {
    "efficacy": recognized(estimate(1.0), estimate(0.0)),
    "generality": recognized(estimate(0.9, 0.8, 1.0), estimate(0.25, 0.1, 0.4)),
    "specificity": recognized(estimate(0.99, 0.97, 1.0), estimate(0.98, 0.95, 1.0)),
    "structure": {
        "similarity": {"after": estimate(0.95, 0.9, 1.0)},
        "distance": {"after": estimate(0.03, 0.02, 0.04)},
    },
}


def description(name="cat", **changes):
    concept = {"name": name, "anchor": "dog", "domain": ["kitten"], "kind": "thing"}
    metadata = {
        "method": "erasure_lightning.methods.uce.UCE",
        "arguments": {"concepts": [concept]},
        "concepts": [concept],
        "backbone": "/home/somebody/models/sd",
        "backbone_fingerprint": "ba5e",
        "seed": 0,
        "versions": VERSIONS,
    }
    return metadata | changes


def write_edit(folder, metadata):
    values = {"text_encoder.layer.weight": numpy.zeros((4, 3), numpy.float32)}
    content = save(values, metadata={"erasure": json.dumps({"format": 2, **metadata})})
    (folder / "edit.safetensors").write_bytes(content)


def write_config(folder, metadata):
    arguments = {"concepts": metadata["concepts"], "backbone": metadata["backbone"], "lr": 1e-5}
    config = {
        "run_dir": None,
        "model": {"class_path": metadata["method"], "init_args": arguments},
        "data": {"seeds": 3},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def write_figures(folder, metadata, protocol=PROTOCOL, estimates=ESTIMATES):
    Result(protocol, metadata, estimates).save(folder / "metrics.json")


def write_images(folder, metadata, colour="blue", side=64):
    name = metadata["concepts"][0]["name"]
    (folder / "samples").mkdir(parents=True)
    with (folder / "samples" / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(SAMPLES_COLUMNS)
        prompts = [(f"a {name}", "efficacy"), ("a boat", "specificity")]
        rows = [(prompt, group, seed) for prompt, group in prompts for seed in (0, 1)]
        for number, (prompt, group, seed) in enumerate(rows):
            files = [f"{number:03}-{when}.png" for when in ("before", "after")]
            for file_name, fill in zip(files, ("red", colour), strict=True):
                Image.new("RGB", (side, side), fill).save(folder / "samples" / file_name)
            writer.writerow((prompt, group, seed, *files))


def write_log(folder, steps=40):
    rows = [
        f"{i},{1 - i / steps},{1 / (i + 1)},{1 / (i + 1)},{'' if i % 10 else i / steps}"
        for i in range(steps)
    ]
    head = "step,monitor/retained,loss/erasure,loss,monitor/erased"
    (folder / "metrics.csv").write_text("\n".join([head, *rows, "40,\0"]))


def outcome(metadata, edit="", **changes):
    success = {
        "original": estimate(1.0),
        "plain": estimate(0.0),
        "attacked": estimate(0.5, 0.2, 0.8),
    }
    name = metadata["concepts"][0]["name"]
    outcome = Outcome(
        attack="UnlearnDiffAtk",
        class_path="erasure_lightning.attacks.unlearn_diff_atk.UnlearnDiffAtk",
        arguments={"steps": 40, "images": "/home/somebody/pictures"},
        paper="Zhang 2023, https://arxiv.org/abs/2310.11868",
        method=metadata["method"],
        concepts=[name],
        edit=edit,
        success=success,
        cases=[
            CaseOutcome(name, 0, 0.5, f"zq {name} \u202e", None),
            CaseOutcome(name, 1, 0.2, None, "found.safetensors"),
        ],
        curve=[CurvePoint(1, 0.0), CurvePoint(10, 0.3), CurvePoint(100, 0.5)],
        cost={"seconds": 12.5, "evaluations": 800, "backwards": 400, "peak_gib": 0.5},
        protocol=PROTOCOL,
    )
    return replace(outcome, **changes)


def make_run(folder, name="cat", protocol=PROTOCOL, estimates=ESTIMATES, **changes):
    """Write a complete run."""
    metadata = description(name, **changes)
    folder.mkdir(parents=True)
    write_edit(folder, metadata)
    write_config(folder, metadata)
    write_figures(folder, metadata, protocol, estimates)
    write_images(folder, metadata)
    write_log(folder)
    (folder / "cost.json").write_text(json.dumps({"seconds": 3.25, "steps": 40, "peak_gib": 0.5}))
    outcome(metadata).save(folder / "attacks" / "unlearndiffatk" / "attack.json")
    return folder
