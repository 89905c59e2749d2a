"""Adapters: beside a layer or around it, merged or not, saved, loaded and applied."""

import pytest
import torch
from contracts import VARIANT
from torch import nn
from torch.nn.functional import mse_loss

from erasure_lightning.adapters.base import Adapter, AdapterPlan, hook_installer
from erasure_lightning.adapters.kinds import KINDS, install
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.edit_validation import check_edit
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.edits.applied import apply_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.testing import check_method, edit_of, quick_fit
from erasure_lightning.training.adapter_methods import AdapterErasure, LoraErasure
from erasure_lightning.training.checkpoints import read_checkpoint

CAT = [Concept("cat", "dog")]


class Toward:
    """Predicts for the concept what the original predicts for the anchor."""

    def erasure_loss(self, batch):
        return mse_loss(self.student(batch), batch.teacher.anchor)


class Lora(Toward, LoraErasure):
    pass


class Shift(Adapter):
    """Adds a vector."""

    def __init__(self, layer, *, scale):
        super().__init__(layer)
        self.scale = scale
        self.vector = nn.Parameter(torch.zeros(layer.out_features))

    def forward(self, x, output):
        return output + self.scale * self.vector


class Shifting(Toward, AdapterErasure):
    def plan(self):
        return AdapterPlan(
            "shift",
            [n.removeprefix("denoiser.") for n in self.backbone.text_layers()],
            {"scale": 2.0},
        )


@pytest.fixture(autouse=True)
def shifts(monkeypatch):
    monkeypatch.setitem(KINDS, "shift", hook_installer(Shift))


def pipeline():
    tiny = TinyBackbone()
    return tiny.to_pipeline(), tiny


def predict(backbone):
    x, t = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)),
        torch.tensor([100.0, 900.0]),
    )
    with torch.no_grad():
        return backbone.denoise(x, t, backbone.encode(["a cat", "a tree"]))


@pytest.mark.parametrize(
    ("method", "arguments"),
    [(Lora, {}), (Lora, {"merge": False}), (Shifting, {})],
    ids=["merged", "apart", "beside"],
)
def test_contract(method, arguments):
    """Other families and the world are for the tests of the methods with adapters."""
    parts = VARIANT | {"thorough": method is Shifting, "world": None}
    check_method(method, lr=1e-2, **parts, **arguments)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [(Lora, {}), (Lora, {"merge": False}), (Shifting, {})],
    ids=["merged", "apart", "beside"],
)
def test_an_edit_applied_to_a_pipeline_predicts_the_same(tmp_path, method, arguments):
    module = quick_fit(method(concepts=CAT, backbone=TinyBackbone(), lr=1e-2, **arguments), 4)
    module.save_edit(tmp_path / "edit.safetensors")
    adapted, tiny = pipeline()
    before = predict(tiny)
    apply_edit(tmp_path, adapted)
    assert torch.allclose(predict(tiny), predict(module.backbone), atol=1e-6)
    assert not torch.allclose(predict(tiny), before, atol=1e-4)


def test_adapters_begin_at_random_of_the_seed():
    def downs(seed):
        module = Lora(concepts=CAT, backbone=TinyBackbone(), seed=seed)
        module.configure_model()
        return [p for name, p in module.trainable().items() if ".lora_A." in name]

    assert all(torch.equal(a, b) for a, b in zip(downs(0), downs(0), strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(downs(0), downs(1), strict=True))


def test_merging_changes_nothing_but_the_form():
    apart, merged = (
        quick_fit(Lora(concepts=CAT, backbone=TinyBackbone(), lr=1e-2, merge=merge), 4)
        for merge in (False, True)
    )
    assert torch.allclose(predict(apart.backbone), predict(merged.backbone), atol=1e-5)
    assert set(merged.editable()) == {f"{name}.weight" for name in merged.backbone.text_layers()}
    assert "adapters" not in merged.description()


def test_a_merged_checkpoint_is_read_by_a_fresh_module(tmp_path):
    module = quick_fit(
        Lora(concepts=CAT, backbone=TinyBackbone(), lr=1e-2), 4, save=tmp_path / "end.ckpt"
    )
    fresh = Lora(concepts=CAT, backbone=TinyBackbone())
    fresh.configure_model()
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    fresh.on_load_checkpoint(saved)
    fresh.load_state_dict(saved["state_dict"], strict=False)
    assert torch.equal(predict(fresh.backbone), predict(module.backbone))


@pytest.mark.parametrize(
    ("method", "arguments"),
    [(Lora, {}), (Lora, {"merge": False}), (Shifting, {})],
    ids=["merged", "apart", "beside"],
)
def test_an_edit_file_goes_back_into_its_module(tmp_path, method, arguments):
    module = quick_fit(method(concepts=CAT, backbone=TinyBackbone(), lr=1e-2, **arguments), 2)
    module.save_edit(tmp_path / "edit.safetensors")
    fresh, saved = (
        method(concepts=CAT, backbone=TinyBackbone(), **arguments),
        read_checkpoint(tmp_path / "edit.safetensors"),
    )
    assert all(
        "base_layer" not in name and name.startswith("backbone.unet.")
        for name in saved["state_dict"]
    )
    fresh.configure_model()
    fresh.on_load_checkpoint(saved)
    fresh.load_state_dict(saved["state_dict"], strict=False)
    assert torch.equal(predict(fresh.backbone), predict(module.backbone))


def test_the_original_has_no_adapters():
    module = Lora(concepts=CAT, backbone=TinyBackbone())
    module.configure_model()
    assert not [name for name, _ in module.original.named_parameters() if "lora" in name]
    assert torch.equal(predict(module.original), predict(TinyBackbone()))
    assert {n for n, p in module.named_parameters() if p.requires_grad} == {
        f"backbone.{n}" for n in module.trainable()
    }


def test_adapters_that_learned_nothing_are_no_edit():
    module = Lora(concepts=CAT, backbone=TinyBackbone())
    module.configure_model()
    with pytest.raises(ErasureError, match="Lora changed none"):
        check_edit(module, edit_of(module))
    check_edit(
        quick_fit(Lora(concepts=CAT, backbone=TinyBackbone(), merge=False), 2), edit_of(module)
    )


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (AdapterPlan("other", ["conv_in"]), "adapters of kind 'other'; known are .*lora"),
        (AdapterPlan("lora", ["nowhere.to_k"], {"rank": 1}), "found 1 missing, nowhere.to_k first"),
    ],
)
def test_adapters_that_do_not_fit(plan, words):
    with pytest.raises(ErasureError, match=words):
        install(TinyBackbone().denoiser, plan)


def test_attention_is_seen_as_it_is_computed():
    tiny = TinyBackbone()
    before = predict(tiny)
    with tiny.attention() as maps:
        during = predict(tiny)
    assert torch.allclose(before, during, atol=1e-5)
    assert torch.equal(predict(tiny), before)
    for probabilities in maps.values():
        assert probabilities.shape[0] == 2
        assert probabilities.shape[3] == 16
        assert torch.allclose(
            probabilities.sum(dim=3), torch.ones_like(probabilities[..., 0]), atol=1e-5
        )
