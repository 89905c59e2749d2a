"""The script that compares the edits of two commits."""

import importlib.util
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TENSORS = {"denoiser.a.weight": torch.ones(2, 3), "text_encoders.0.b.bias": torch.ones(4)}


@pytest.fixture
def equality(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # for its import of rows
    spec = importlib.util.spec_from_file_location("equality", BENCHMARKS / "equality.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edit(equality, tensors):
    tensors = equality.named(tensors)
    return equality.Edit(tensors, dict.fromkeys(tensors, 0.5))


def test_parts_have_one_name_in_all_formats(equality):
    names = ["denoiser.x", "text_encoders.0.y", "text_encoders.0.model.y", "text_encoders.1.z"]
    names += ["unet.x", "text_encoder.y", "text_encoder.text_model.y", "text_encoder_2.z"]
    components = [equality.component_name(name) for name in names]
    assert components == ["unet.x", "text_encoder.y", "text_encoder.y", "text_encoder_2.z"] * 2
    assert equality.component_name("unet.text_model.x") == "unet.text_model.x"


def test_equal_edits_are_equal_under_either_name(equality, capsys):
    renamed = {"unet.a.weight": torch.ones(2, 3), "text_encoder.b.bias": torch.ones(4) + 9e-7}
    assert equality.table({"uce": edit(equality, renamed)}, {"uce": edit(equality, TENSORS)})
    assert "| uce | 2 | 0.5 | 9.5e-07 | 1.9e-06 | yes |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed",
    [
        {"text_encoders.0.b.bias": torch.tensor([1.0, 1.0, 1.0, 1.00001])},
        {"text_encoders.0.b.bias": torch.tensor([torch.nan, 1.0, 1.0, 1.0])},
        {"text_encoders.0.b.bias": torch.ones(4, 1)},
        {"text_encoders.0.c.bias": torch.ones(4)},
    ],
    ids=["number", "NaN", "shape", "one more"],
)
def test_differences_are_found(equality, changed, capsys):
    new, old = edit(equality, TENSORS | changed), edit(equality, TENSORS)
    assert not equality.table({"uce": new}, {"uce": old})
    assert not equality.table({"uce": old}, {"uce": new})
    assert capsys.readouterr().out.count("**no**") == 2


def test_an_edit_of_one_side_is_listed(equality, capsys):
    one = {"uce": edit(equality, TENSORS)}
    assert not equality.table(one, one | {"sage": one["uce"]})
    assert "Only in --against: sage" in capsys.readouterr().out
    assert not equality.table(one | {"sage": one["uce"]}, one)
    assert "Only in --out: sage" in capsys.readouterr().out


def test_every_shipped_config_is_compared(equality):
    configs = equality.shipped(BENCHMARKS.parent)
    assert {"sage", "sage-heart", "realera-closed-form", "age", "speed"} <= configs.keys()
    assert configs.keys() >= {path.stem for path in (BENCHMARKS.parent / "configs").glob("*.yaml")}
    assert equality.OWN.keys() <= configs.keys()
