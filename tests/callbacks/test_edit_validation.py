import pytest
import torch
from edit_files import read_content
from trivial import TINY, Distillation, Exploding, Idle, quiet_trainer

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.edit_export import ExportEdit
from erasure_lightning.callbacks.edit_validation import EditValidation
from erasure_lightning.cli.main import main
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.esd import ESD


def fit(folder, method, *callbacks, steps=3):
    module = method(concepts=[Concept("cat", "dog")], backbone=TinyBackbone(), lr=1e-3)
    trainer = quiet_trainer(
        max_steps=steps,
        default_root_dir=folder,
        callbacks=[*callbacks, EditValidation(), ExportEdit("a: 1\n")],
    )
    trainer.fit(module, PromptData(batch_size=2))
    return module


def test_an_edit_is_written_with_its_metadata(tmp_path):
    module = fit(tmp_path, Distillation)
    tensors, metadata = read_content(tmp_path / "edit.safetensors")
    editable = {
        module.backbone.component_name(name): value for name, value in module.editable().items()
    }
    assert tensors.keys() == editable.keys()
    assert all(torch.equal(value, editable[name]) for name, value in tensors.items())
    components = {name.partition(".")[0] for name in tensors}
    assert components == metadata["fingerprints"].keys() == {"unet"}
    assert metadata["method"] == "trivial.Distillation"
    assert metadata["concepts"][0]["name"] == "cat"
    assert metadata["config"] == "a: 1\n"


def test_an_edit_that_changed_nothing_is_an_error(tmp_path):
    with pytest.raises(
        ErasureError, match=r"Idle changed none of its \d+ parameters; no file was written"
    ):
        fit(tmp_path, Idle)
    assert not (tmp_path / "edit.safetensors").exists()


def test_a_non_finite_loss_stops_at_once(tmp_path):
    with pytest.raises(
        ErasureError, match=r"became nan at step 1\. Try a lower learning rate: lr 0\.0001"
    ):
        fit(tmp_path, Exploding, steps=1000)


def test_float16_is_named_before_the_learning_rate(tmp_path, capsys):
    argv = [*TINY, "--measure", "false", "--trainer.precision"]
    assert main(["fit", *argv, "16-true", "--run_dir", str(tmp_path / "half")]) == 2
    line = capsys.readouterr().err
    assert "became nan" in line or "holds NaN" in line
    remedy = "leave precision 16-true out, or give base_dtype bfloat16"
    cure, _, rest = line.partition(remedy)
    assert "float16" in cure
    assert ": lr 0.0001 in place of 0.001" in rest
    assert main(["fit", *argv, "32-true", "--run_dir", str(tmp_path / "whole")]) == 0


def test_adapters_are_copied_without_the_weights_beneath_them():
    validation = EditValidation()
    module = ESD(concepts=[Concept("cat")], backbone=TinyBackbone(), rank=2)
    quiet_trainer(max_steps=1, callbacks=[validation]).fit(module, PromptData(batch_size=2))
    names = validation.state_dict()["added"]
    assert names
    assert all(".lora_" in name for name in names)


def test_a_second_fit_has_initial_adapters_of_its_own():
    """Those of another module, which has other layers or the same at another rank."""
    validation = EditValidation()
    ranks = []
    for rank in (2, 3):
        module = ESD(concepts=[Concept("cat")], backbone=TinyBackbone(), rank=rank)
        quiet_trainer(max_steps=1, callbacks=[validation]).fit(module, PromptData(batch_size=2))
        added = validation.state_dict()["added"]
        ranks.append({len(value) for name, value in added.items() if ".lora_A." in name})
    assert ranks == [{2}, {3}]


class Spoiled(Distillation):
    """Sets a weight to infinity after the last finite loss."""

    def on_train_end(self):
        next(iter(self.editable().values())).data[0, 0] = float("inf")


def test_a_non_finite_edit_is_an_error(tmp_path):
    with pytest.raises(
        ErasureError, match=r"holds NaN or infinity in 1 of \d+ parameters.*no file was written"
    ):
        fit(tmp_path, Spoiled)
    assert not (tmp_path / "edit.safetensors").exists()
