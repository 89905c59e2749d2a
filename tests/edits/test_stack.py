"""Edits one on another: any strength, removed in any order, resting on each other."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from trivial import Distillation

from erasure_lightning import Concept, apply_edit, compose, erase, load_edit
from erasure_lightning.backbones.tiny import TINY_BACKBONES, TinyBackbone
from erasure_lightning.edits.edit import read_edit
from erasure_lightning.edits.stack import applied_edits, stacked_values, unedited_values
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.receler import Receler
from erasure_lightning.methods.spm import SPM
from erasure_lightning.testing import edit_of, quick_fit


def solved(pipeline, concept, anchor="dog"):
    return erase(pipeline, concept, "UCE", anchor=anchor, progress_bar=False)


def trained(pipeline, concept, method=Distillation, **arguments):
    quick = {"steps": 2, "batch_size": 2, "accelerator": "cpu", "progress_bar": False}
    return erase(pipeline, concept, method, **quick, **arguments)


def weights(pipeline):
    parts = [v for v in vars(pipeline).values() if isinstance(v, torch.nn.Module)]
    return {f"{i} {n}": v.clone() for i, part in enumerate(parts) for n, v in
            part.state_dict().items()}  # fmt: skip


def stacked(pipeline):
    """Two edits, and the pipeline's weights before, between and after them."""
    plain = weights(pipeline)
    below = solved(pipeline, "cat")
    between = weights(pipeline)
    above = solved(pipeline, "star")
    return below, above, plain, between, weights(pipeline)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def near(one, other):
    return all(torch.allclose(one[n], other[n], atol=1e-6) for n in one)


@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_edits_of_every_family_are_removed_in_any_order(family):
    """Both orders end bit for bit where they began; what is left is the other's difference."""
    pipeline = family().to_pipeline()
    below, above, plain, between, both = stacked(pipeline)
    below.remove()
    left = weights(pipeline)
    expected = {name: plain[name] + (both[name] - between[name]) for name in plain}
    assert near(left, expected)
    assert not same(left, plain)
    above.remove()
    assert same(weights(pipeline), plain)
    part = next(iter(v for v in vars(pipeline).values() if isinstance(v, torch.nn.Module)))
    assert not unedited_values(part)


def test_the_strength_of_an_edit_beneath_another():
    pipeline = TinyBackbone().to_pipeline()
    below, above, plain, between, both = stacked(pipeline)
    below.strength = 0
    assert near(weights(pipeline), {n: plain[n] + both[n] - between[n] for n in plain})
    above.strength = 2
    assert near(weights(pipeline), {n: plain[n] + 2 * (both[n] - between[n]) for n in plain})
    above.strength = below.strength = 1
    assert same(weights(pipeline), both)


def test_edits_that_were_applied_on_two_devices(monkeypatch):
    """The first before, the second after ``pipeline.to``; tensors have a device and no values."""
    monkeypatch.setattr(torch, "equal", lambda one, other: False)  # as beneath another strength
    module = nn.Module()
    with FakeTensorMode():
        unedited_values(module)["weight"] = torch.zeros(2)
        for device in ("cpu", "cuda"):
            place = torch.zeros(2, device=device)
            record = {"before": {"weight": place}, "after": {"weight": place}}
            applied_edits(module).append(record | {"strength": 0.5, "transferred": False})
        assert stacked_values(module)["weight"].device.type == "cpu"


@pytest.mark.parametrize("strength", [0, 0.5, 2])
def test_an_edit_that_is_held_at_any_strength_is_not_applied_again(strength, tmp_path):
    """Also by another object; the control is a pipeline whose weights were replaced since."""
    pipeline = TinyBackbone().to_pipeline()
    plain = weights(pipeline)
    edit = solved(pipeline, "cat")
    edit.strength = strength
    held = weights(pipeline)
    other = apply_edit(edit.save(tmp_path / "edit.safetensors"), pipeline)
    assert edit.apply(pipeline).strength == other.strength == strength
    assert len(applied_edits(pipeline.unet)) == 1
    assert same(weights(pipeline), held)
    other.strength = 1
    assert edit.strength == 1
    other.remove()
    assert same(weights(pipeline), plain)
    with pytest.raises(ErasureError, match="found it removed, or the component replaced"):
        edit.strength = 1
    solved(pipeline, "cat")
    pipeline.unet.load_state_dict(TinyBackbone().to_pipeline().unet.state_dict())
    apply_edit(tmp_path / "edit.safetensors", pipeline)
    assert not same(weights(pipeline), plain)


@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_an_edit_that_cannot_be_written_leaves_the_pipeline_as_it_was(component):
    """NaN in either of two components; the edit without it is the control."""
    pipeline = TinyBackbone().to_pipeline()
    plain = weights(pipeline)
    text = erase(TinyBackbone().to_pipeline(), "star", "SAGE", anchor="dog", steps=2, lr=1e-2,
                 warmup=0, check_steps=0, accelerator="cpu", progress_bar=False)  # fmt: skip
    both = compose(solved(TinyBackbone().to_pipeline(), "cat"), text, pipeline=pipeline)
    broken = type(both)(
        {name: value.clone() for name, value in both.tensors.items()}, both.metadata
    )
    next(v for name, v in broken.tensors.items() if name.startswith(component))[0] = torch.nan
    with pytest.raises(ErasureError, match="found other values in 1"):
        broken.apply(pipeline)
    assert same(weights(pipeline), plain)
    assert not applied_edits(pipeline.unet) + applied_edits(pipeline.text_encoder)
    both.apply(pipeline)
    assert not same(weights(pipeline), plain)


def test_the_strength_is_read_where_the_component_is_gone():
    """A pipeline's text encoder may be dropped for its memory; what needs it says so."""
    pipeline = TinyBackbone().to_pipeline()
    edit = solved(pipeline, "cat")
    pipeline.unet = None
    assert edit.strength == 1
    assert "UCE of cat" in edit.report()
    with pytest.raises(ErasureError, match="needs a pipeline with a unet"):
        edit.strength = 0.5


@pytest.mark.parametrize("method", [SPM, Receler])
def test_adapters_beside_weights_in_any_order(method):
    """The strength of the weights leaves the adapters alone."""
    arguments = {"rank": 4} if method is Receler else {}
    pipeline = TinyBackbone().to_pipeline()
    plain = weights(pipeline)
    below = solved(pipeline, "cat")
    above = trained(pipeline, "star", method, lr=1e-2, warmup=0, **arguments)
    below.strength = 0.5
    assert above.strength == 1
    assert {record["strength"] for record in applied_edits(pipeline.unet)} == {0.5, 1.0}
    below.remove()
    with pytest.raises(ErasureError, match="cannot be merged"):
        pipeline.save_pretrained("never")
    with pytest.raises(ErasureError, match="start from needs to be weights; found .* adapters"):
        solved(pipeline, "cat")
    above.remove()
    assert same(weights(pipeline), plain)


def test_what_messages_advise_for_adapters_beside_weights_works():
    """Each is an edit of the original; the sum of weights is the control."""
    pipeline = TinyBackbone().to_pipeline()
    plain = weights(pipeline)
    gated = trained(pipeline, "star", SPM, lr=1e-2, warmup=0)
    gated.remove()
    other = solved(pipeline, "house")
    other.remove()
    below = solved(pipeline, "cat")
    with pytest.raises(ErasureError, match=r"beside the others, with .*\(..., transfer=True\)"):
        compose(below, gated, pipeline=pipeline)
    with pytest.raises(ErasureError, match="Add the two by compose"):
        other.apply(pipeline)
    with pytest.raises(ErasureError, match="Remove that one first, or .* transfer=True"):
        gated.apply(pipeline)
    gated.apply(pipeline, transfer=True)
    assert {record["edit"] for record in applied_edits(pipeline.unet)} == {
        "UCE of cat",
        "SPM of star",
    }
    gated.remove()
    below.remove()
    assert same(weights(pipeline), plain)


def test_what_was_transferred_stays_itself_when_an_edit_beneath_goes():
    pipeline = TinyBackbone().to_pipeline()
    below = solved(pipeline, "cat")
    other = TinyBackbone().to_pipeline()
    above = solved(other, "star")
    alone = weights(other)
    above.apply(pipeline, transfer=True)
    below.remove()
    assert same(weights(pipeline), alone)


def test_changes_are_those_of_the_pipeline_as_it_is():
    """Once an edit beneath has another strength, or has gone."""
    pipeline = TinyBackbone().to_pipeline()
    plain = {f"unet.{name}": value.clone() for name, value in pipeline.unet.named_parameters()}
    below, above = solved(pipeline, "cat"), solved(pipeline, "star")
    over = solved(TinyBackbone().to_pipeline(), "dog", anchor="lamp")
    over.apply(pipeline, transfer=True)

    def check(top):
        changes = top.changes()
        now = {f"unet.{name}": value for name, value in pipeline.unet.named_parameters()}
        assert all(torch.equal(change.after, now[name]) for name, change in changes.items())
        top.strength = 0
        assert all(torch.equal(change.before, now[name]) for name, change in changes.items())
        assert not any(torch.equal(*change) for change in changes.values())
        top.strength = 1

    check(over)
    over.remove()
    below.strength = 0.5
    check(above)
    over.apply(pipeline, transfer=True)
    below.remove()
    above.remove()
    check(over)
    assert all(torch.equal(change.before, plain[n]) for n, change in over.changes().items())


def test_an_edit_names_those_it_rests_on_and_needs_them(tmp_path):
    pipeline = TinyBackbone().to_pipeline()
    first = solved(pipeline, "cat")
    second = erase(pipeline, "star", "SAGE", anchor="dog", steps=2, lr=1e-2, warmup=0,
                   check_steps=0, accelerator="cpu", progress_bar=False)  # fmt: skip
    both = weights(pipeline)
    (entry,) = second.metadata["base_edits"]
    assert (entry["edit"], entry["fingerprint"]) == ("UCE of cat", first.fingerprint)
    assert entry["components"] == ["unet"]
    path = second.save(tmp_path / "second" / "edit.safetensors")
    plain = TinyBackbone().to_pipeline()
    before = weights(plain)
    with pytest.raises(ErasureError, match="is based on UCE of cat .* must be applied first"):
        apply_edit(path, plain)  # its own component, the text encoder, would fit
    assert same(weights(plain), before)
    solved(plain, "cat")
    assert apply_edit(path, plain).metadata["transferred"] == []
    assert same(weights(plain), both)


def test_the_chain_is_applied_from_the_files_and_removed_with_the_edit(tmp_path):
    first = solved(TinyBackbone().to_pipeline(), "cat").save(tmp_path / "a" / "edit.safetensors")
    pipeline = TinyBackbone().to_pipeline()
    second = erase(pipeline, "star", "UCE", anchor="dog", base_edit=first, progress_bar=False)
    third = solved(pipeline, "house")
    both = weights(pipeline)
    second.save(tmp_path / "b" / "edit.safetensors")
    third.metadata["base_edits"][1]["path"] = str(tmp_path / "b" / "edit.safetensors")
    third.save(tmp_path / "c" / "edit.safetensors")
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)  # each is found beside the other
    plain = TinyBackbone().to_pipeline()
    before = weights(plain)
    applied = apply_edit(moved / "c", plain)
    assert applied.apply(plain) is applied  # a second time, which applies none
    assert same(weights(plain), both)
    assert [record["edit"] for record in applied_edits(plain.unet)] == [
        "UCE of cat", "UCE of star", "UCE of house",
    ]  # fmt: skip
    applied.remove()
    assert same(weights(plain), before)
    other = TinyBackbone(seed=1).to_pipeline()
    with pytest.raises(ErasureError, match="needs DiffusionPipeline|needs StableDiff"):
        apply_edit(moved / "c", other)
    solved(TinyBackbone(seed=1).to_pipeline(), "cat").save(moved / "a" / "edit.safetensors")
    with pytest.raises(ErasureError, match="holds another edit, or none"):
        apply_edit(moved / "c", plain)
    assert same(weights(plain), before)


def test_a_module_starts_from_edits_and_its_teacher_has_them(tmp_path):
    first = solved(TinyBackbone().to_pipeline(), "cat").save(tmp_path / "a" / "edit.safetensors")
    names = {"concepts": [Concept("star", "dog")], "base_edit": str(first.parent)}
    module = Distillation(backbone=TinyBackbone(), **names)
    module.configure_model()
    values = read_edit(first).tensors
    name = next(iter(values))
    inside = f"denoiser.{name.removeprefix('unet.')}"
    fresh = TinyBackbone()
    assert torch.equal(module.original.get_parameter(inside), values[name])
    assert torch.equal(module.unedited.get_parameter(inside), fresh.get_parameter(inside))
    assert module.unedited_fingerprint == fresh.fingerprint() != module.fingerprint
    with torch.no_grad():
        for parameter in module.trainable().values():
            parameter += 1
    assert module.unedited.fingerprint() == fresh.fingerprint()
    assert [concept.name for concept in module.earlier] == ["cat"]
    plain = Distillation(backbone=TinyBackbone(), concepts=[Concept("star", "dog")])
    plain.configure_model()
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    with pytest.raises(ErasureError, match="is based on UCE of cat .*; the model has no edit"):
        plain.on_load_checkpoint(checkpoint)


def test_a_stopped_run_on_an_edit_ends_where_it_would_have(tmp_path):
    """The control is the run on the plain model."""
    first = solved(TinyBackbone().to_pipeline(), "cat").save(tmp_path / "edit.safetensors")

    def make(base_edit=str(first)):
        concepts = [Concept("star", "dog")]
        return Distillation(concepts=concepts, backbone=TinyBackbone(), base_edit=base_edit)

    whole = edit_of(quick_fit(make(), 2))
    quick_fit(make(), 1, total=2, save=tmp_path / "half.ckpt")
    resumed = edit_of(quick_fit(make(), 2, resume=tmp_path / "half.ckpt"))
    assert same(whole, resumed)
    assert not same(whole, edit_of(quick_fit(make(None), 2)))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["a", "a"], "needs each edit once"),
        ("nowhere", "No edit at .*nowhere"),
        ("cut", "cannot be read as safetensors"),
        ("adapters", "needs to be weights; found SPM of star"),
    ],
)
def test_edits_that_cannot_be_started_from(tmp_path, named, message):
    whole = solved(TinyBackbone().to_pipeline(), "cat").save(tmp_path / "a" / "edit.safetensors")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "edit.safetensors").write_bytes(whole.read_bytes()[:-50])
    if named == "adapters":
        spm = trained(TinyBackbone().to_pipeline(), "star", SPM, lr=1e-2, warmup=0)
        spm.save(tmp_path / "adapters" / "edit.safetensors")
    paths = [str(tmp_path / n) for n in ([named] if isinstance(named, str) else named)]
    with pytest.raises(ErasureError, match=message):
        Distillation(concepts=[Concept("star")], backbone=TinyBackbone(), base_edit=paths)


def test_a_failed_erasure_leaves_no_base_edit_behind(tmp_path):
    first = solved(TinyBackbone().to_pipeline(), "cat").save(tmp_path / "edit.safetensors")
    pipeline = TinyBackbone().to_pipeline()
    before = weights(pipeline)
    with pytest.raises(ErasureError):
        erase(pipeline, "star", "UCE", base_edit=first, rigde=1.0, progress_bar=False)
    assert same(weights(pipeline), before)
    assert load_edit(first).apply(pipeline).is_last()
