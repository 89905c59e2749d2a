"""`compose`: the sum of differences, the report of where edits meet, and what is refused."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from edit_files import read_content

from erasure_lightning import Concept, apply_edit, compose, erase, load_edit
from erasure_lightning.api.compose import save_composition
from erasure_lightning.api.load import load_edited
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.cli.main import main
from erasure_lightning.edits.composition import dense_values, weight_names
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.spm import SPM

QUICK = {"steps": 2, "batch_size": 2, "accelerator": "cpu", "progress_bar": False}


def edit_of(concept, family=TinyBackbone, method="UCE", **arguments):
    """An edit in no pipeline."""
    pipeline = family().to_pipeline()
    edit = erase(pipeline, Concept(concept, "dog"), method, **QUICK, **arguments)
    edit.remove()
    return edit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs and their base model, as files."""
    folder = tmp_path_factory.mktemp("runs")
    TinyBackbone().save(folder / "model")
    for concept in ("cat", "star"):
        edit = edit_of(concept)
        edit.metadata["backbone"] = str(folder / "model")
        edit.save(folder / concept / "edit.safetensors")
    return folder


def test_a_model_that_was_loaded_from_no_folder_is_asked_for():
    message = (
        r"only its class .*\. In Python pass it as pipeline=pipeline; commands take --backbone"
    )
    with pytest.raises(ErasureError, match=message):
        compose(edit_of("cat"), edit_of("star"))


@pytest.mark.parametrize("family", [TinyBackbone, TinyFlux])
def test_a_composition_is_the_sum_of_differences(family):
    one, other = edit_of("cat", family), edit_of("star", family)
    pipeline = family().to_pipeline()
    both = compose(one, other, pipeline=pipeline)
    (overlap,) = both.metadata["overlap"]
    (component,) = {name.partition(".")[0] for name in one.tensors}
    weights = getattr(pipeline, component).state_dict()
    changes = []
    for name, value in both.tensors.items():
        weight = weights[name.removeprefix(f"{component}.")]
        changes.append([edit.tensors[name] - weight for edit in (one, other)])
        assert torch.allclose(value, weight + sum(changes[-1]), atol=1e-6)
    first, second = (torch.cat([pair[i].flatten() for pair in changes]) for i in (0, 1))
    cosine = torch.cosine_similarity(first, second, dim=0).item()
    assert overlap["cosine"] == pytest.approx(cosine, abs=1e-3)
    assert overlap["tensors"] == sorted(both.tensors)
    assert overlap["sizes"][0] > 0
    assert f"cosine of {cosine:.3f}" in both.report()
    both.apply(pipeline)
    assert both.concepts == ["cat", "star"]
    both.remove()


def test_edits_that_do_not_meet_are_as_they_were():
    """Bit for bit, and without the model; the control is a strength other than 1."""
    one = edit_of("cat")
    other = edit_of("star", method="SAGE", lr=1e-2, warmup=0, check_steps=0)
    both = compose(one, other)
    assert both.metadata["overlap"] == []
    assert "no tensor is changed by two" in both.report()
    for edit in (one, other):
        assert all(torch.equal(both.tensors[name], edit.tensors[name]) for name in edit.tensors)
    pipeline = TinyBackbone().to_pipeline()
    one.apply(pipeline)
    one.strength = 0.5
    half = compose(one, other, pipeline=pipeline)
    name = next(iter(one.tensors))
    plain = TinyBackbone().to_pipeline().unet.state_dict()[name.removeprefix("unet.")]
    assert torch.allclose(half.tensors[name], (plain + one.tensors[name]) / 2, atol=1e-6)


def test_low_rank_differences_are_merged_exactly():
    edit = edit_of("cat", method="ESD", rank=2, merge=False, lr=1e-2, warmup=0)
    assert all(".lora_" in name for name in edit.tensors)
    pipeline = TinyBackbone().to_pipeline()
    base = {f"unet.{n}": v.clone() for n, v in pipeline.unet.state_dict().items()}
    values = dense_values(edit, base)
    assert values.keys() == weight_names(edit.tensors)
    edit.apply(pipeline)
    state = pipeline.unet.state_dict()
    assert all(torch.equal(state[n.removeprefix("unet.")], v) for n, v in values.items())


def test_a_low_rank_edit_is_composed_from_its_factors():
    settings = {"method": "ESD", "rank": 2, "lr": 1e-2, "warmup": 0}
    apart = edit_of("cat", **settings, merge=False)
    other = edit_of("star", method="UCE")
    pipeline = TinyBackbone().to_pipeline()
    composed = compose(apart, other, pipeline=pipeline).tensors
    merged = compose(edit_of("cat", **settings), other, pipeline=pipeline).tensors
    assert composed.keys() == merged.keys()
    assert all(torch.allclose(composed[name], merged[name], atol=1e-6) for name in merged)
    alone = compose(other, edit_of("cat", method="UCE"), pipeline=pipeline).tensors  # the control
    assert not all(torch.allclose(composed[name], alone[name], atol=1e-4) for name in alone)


def test_a_composition_on_the_disk_is_measured_like_any_other_edit(folder, tmp_path, capsys):
    runs = [str(folder / concept) for concept in ("cat", "star")]
    assert main(["compose", *runs, "--out", str(tmp_path / "both")]) == 0
    assert "tensors are changed by both UCE of cat (of 8) and UCE of star" in capsys.readouterr()[0]
    module = load_edited(tmp_path / "both" / "edit.safetensors")
    values, metadata = read_content(tmp_path / "both" / "edit.safetensors")
    (key, value) = next(iter(values.items()))
    assert torch.equal(module.backbone.get_parameter(key.replace("unet", "denoiser", 1)), value)
    assert [concept.name for concept in module.concepts] == ["cat", "star"]
    assert (tmp_path / "both" / "config.yaml").read_text() == metadata["config"]
    quick = ["--data.others", "2", "--data.steps", "2", "--data.seeds", "2"]
    quick += ["--trainer.accelerator", "cpu", "--run_dir", str(tmp_path / "tested")]
    assert main(["test", "--ckpt_path", str(tmp_path / "both"), *quick]) == 0
    measured = json.loads((tmp_path / "tested" / "metrics.json").read_text())
    assert measured["estimates"]["structure"]["distance"]["after"]["mean"] > 0
    again = save_composition(compose(*runs), tmp_path / "alone.safetensors")
    assert load_edit(again).fingerprint == load_edit(tmp_path / "both").fingerprint


def test_edits_on_other_edits_are_composed_on_those():
    pipeline = TinyBackbone().to_pipeline()
    base = erase(pipeline, Concept("house", "dog"), "UCE", **QUICK)
    one = erase(pipeline, Concept("cat", "dog"), "UCE", **QUICK)
    one.remove()
    other = erase(pipeline, Concept("star", "dog"), "UCE", **QUICK)
    other.remove()
    both = compose(one, other, pipeline=pipeline)
    name = next(iter(both.tensors))
    below = base.tensors[name]
    expected = below + (one.tensors[name] - below) + (other.tensors[name] - below)
    assert torch.allclose(both.tensors[name], expected, atol=1e-6)
    assert [entry["edit"] for entry in both.metadata["base_edits"]] == ["UCE of house"]
    one.apply(pipeline)  # of a pipeline that holds one of them the sum is the same
    again = compose(one, other, pipeline=pipeline)
    assert all(torch.equal(again.tensors[name], value) for name, value in both.tensors.items())
    one.remove()
    both.apply(pipeline)
    with pytest.raises(
        ErasureError, match="found UCE of cat on UCE of house and UCE of rose on no"
    ):
        compose(one, edit_of("rose"))


def test_several_methods_in_one_call_are_the_sum_of_their_edits():
    """Each from the same model; the control is an error of the last, which leaves that model."""
    arguments = {**QUICK, "lr": 1e-2, "warmup": 0}
    pipeline = TinyBackbone().to_pipeline()
    base = erase(pipeline, Concept("house", "dog"), "UCE", **QUICK)
    several = erase(pipeline, Concept("cat", "dog"), ["SAGE", "ESD"], **arguments)
    assert [c["edit"] for c in several.metadata["composed"]] == ["SAGE of cat", "ESD of cat"]
    several.remove()
    apart = []
    for method in ("SAGE", "ESD"):
        apart.append(erase(pipeline, Concept("cat", "dog"), method, **arguments))
        apart[-1].remove()
    expected = compose(*apart, pipeline=pipeline)
    assert all(torch.equal(several.tensors[n], v) for n, v in expected.tensors.items())
    base.remove()
    before = {n: v.clone() for n, v in pipeline.text_encoder.state_dict().items()}
    with pytest.raises(ErasureError, match="SPM adapters|spm adapters"):
        erase(pipeline, Concept("cat", "dog"), ["SAGE", "SPM"], **arguments)
    assert all(torch.equal(before[n], v) for n, v in pipeline.text_encoder.state_dict().items())


def refused(capsys, *words):
    code = main(["compose", *map(str, words)])
    printed = capsys.readouterr().err
    assert (code, printed.count("\n")) == (2, 1)
    return printed


def test_what_cannot_be_composed_is_refused_in_a_line(folder, tmp_path, capsys):
    cat, star, out = folder / "cat", folder / "star", tmp_path / "out"
    assert "needs each edit once; found UCE of cat" in refused(capsys, cat, cat, "--out", out)
    assert "at least two edits; found 1" in refused(capsys, cat, "--out", out)
    assert "No edit at" in refused(capsys, cat, folder / "none", "--out", out)
    assert "not overwritten. Choose another --out." in refused(
        capsys, cat, star, "--out", folder / "star"
    )
    other = edit_of("star", TinyFlux)
    path = other.save(tmp_path / "flux" / "edit.safetensors")
    assert "needs edits of one model" in refused(capsys, cat, path, "--out", out)
    spm = edit_of("star", method=SPM, lr=1e-2, warmup=0).save(tmp_path / "spm.safetensors")
    assert "found spm adapters" in refused(capsys, cat, spm, "--out", out)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((cat / "edit.safetensors").read_bytes()[:-9])
    assert "may be cut short" in refused(capsys, cat, cut, "--out", out)
    assert not out.exists()


def test_another_model_of_the_same_shapes_is_no_base(tmp_path):
    one, other = edit_of("cat"), edit_of("star")
    words = "found another StableDiffusionPipeline.unet. Give the pipeline"
    with pytest.raises(ErasureError, match=words):
        compose(one, other, pipeline=TinyBackbone(seed=1).to_pipeline())
    pipeline = TinyBackbone().to_pipeline()
    expected = compose(one, other, pipeline=pipeline).tensors
    one.apply(pipeline)
    with_edit = compose(one, other, pipeline=pipeline).tensors  # counts without it
    assert all(torch.equal(with_edit[name], value) for name, value in expected.items())
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ErasureError, match=words):  # of which the weights beneath are unknown
        compose(one, other, pipeline=StableDiffusionPipeline.from_pretrained(tmp_path))


def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch):
    both = compose(folder / "cat", folder / "star")

    def full(*_):
        raise ErasureError("Could not write: No space left on device.")

    monkeypatch.setattr("erasure_lightning.api.compose.write_atomically", full)
    with pytest.raises(ErasureError, match="No space"):
        save_composition(both, tmp_path / "new" / "edit.safetensors")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ErasureError, match="another of equal shapes"):
        apply_edit(both, TinyBackbone(seed=1).to_pipeline())
