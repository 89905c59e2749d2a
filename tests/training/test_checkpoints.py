import errno
import os
import pickle

import pytest
import torch
from edit_files import write_content
from lightning import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from trivial import Distillation, quiet_trainer

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.errors import ErasureError
from erasure_lightning.runs.folder import Run
from erasure_lightning.testing import edit_of
from erasure_lightning.training.checkpoints import (
    PlainCheckpointIO,
    locate_checkpoint,
    read_checkpoint,
)

CONTENT = {
    "state_dict": {"backbone.w": torch.ones(2)},
    "erasure": {"method": "m.M", "arguments": {"lr": 1.0}},
}


@pytest.fixture
def run(tmp_path):
    """A run that was killed."""
    killed_run = Run(tmp_path)
    PlainCheckpointIO().save_checkpoint(CONTENT, killed_run.last)
    return killed_run


def finish(run):
    write_content(run.edit, {"w": torch.ones(2)}, {"method": "m.M", "arguments": {"lr": 1.0}})


def test_what_was_saved_is_read(run):
    read = PlainCheckpointIO().load_checkpoint(run.last)
    assert read["erasure"] == CONTENT["erasure"]
    assert torch.equal(read["state_dict"]["backbone.w"], torch.ones(2))
    assert os.listdir(run.last.parent) == ["last.ckpt"]


def test_arguments_of_an_earlier_version_have_their_names_of_now(run):
    earlier = {"method": "m.M", "arguments": {"base": "bfloat16"}}
    PlainCheckpointIO().save_checkpoint(CONTENT | {"erasure": earlier}, run.last)
    assert read_checkpoint(run.last)["erasure"]["arguments"] == {"base_dtype": "bfloat16"}


def test_an_edit_is_read_as_a_checkpoint(run):
    finish(run)
    read = read_checkpoint(run.edit)
    assert read["state_dict"].keys() == {"backbone.w"}
    assert read["hyper_parameters"] == {"lr": 1.0}
    assert read["pytorch-lightning_version"]


def test_a_folder_means_what_the_command_needs(run):
    assert (
        locate_checkpoint(str(run.root), "fit")
        == locate_checkpoint(str(run.root), "test")
        == run.last
    )
    finish(run)
    assert locate_checkpoint(str(run.root), "test") == run.edit
    with pytest.raises(ErasureError, match="nothing is left to resume"):
        locate_checkpoint(str(run.root), "fit")


def test_a_finished_edit_cannot_be_resumed(run):
    finish(run)
    with pytest.raises(ErasureError, match=r"without the optimizer's state.*last\.ckpt"):
        locate_checkpoint(str(run.edit), "fit")


def test_no_such_file(tmp_path):
    with pytest.raises(ErasureError, match="No checkpoint at .*gone"):
        locate_checkpoint(str(tmp_path / "gone"), "fit")
    with pytest.raises(
        ErasureError,
        match=r"is no run of ours that fit could use: it holds no checkpoints/last\.ckpt",
    ):
        locate_checkpoint(str(tmp_path), "fit")
    with pytest.raises(ErasureError, match=r"holds no edit\.safetensors"):
        locate_checkpoint(str(tmp_path), "test")
    with pytest.raises(ErasureError, match="No checkpoint at"):
        read_checkpoint(tmp_path / "gone.ckpt")


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_run_without_a_checkpoint_is_started_again(tmp_path, command):
    run = Run(tmp_path)
    run.config.touch()
    with pytest.raises(ErasureError, match=f"nothing that {command} could use") as caught:
        locate_checkpoint(str(tmp_path), command)
    assert f"again with `erasure fit --config {run.config} --run_dir {tmp_path}`." in str(
        caught.value
    )


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.pth", "model"])
def test_other_files_are_refused_with_a_way_out(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ErasureError, match=r"Pickles can run code.*safetensors\.torch\.save_file"):
        locate_checkpoint(str(tmp_path / name), "test")


class Foreign:
    def __reduce__(self):
        return os.system, ("echo pwned > pwned",)


def test_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"erasure": Foreign()}, "zip.ckpt")
    with open("plain.ckpt", "wb") as file:
        pickle.dump(Foreign(), file)
    for name in ("zip.ckpt", "plain.ckpt"):
        with pytest.raises(ErasureError, match="can run code and is not read"):
            read_checkpoint(tmp_path / name)
    assert not os.path.exists("pwned")


def test_a_file_cut_short(run):
    run.last.write_bytes(run.last.read_bytes()[:200])
    with pytest.raises(ErasureError, match="it may be cut short"):
        read_checkpoint(run.last)


def test_somebody_else_s_checkpoint(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(ErasureError, match="is no checkpoint of an erasure"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_a_full_disk_leaves_the_last_good_one(run, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = run.last.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ErasureError, match="No space left on device"):
        PlainCheckpointIO().save_checkpoint({"erasure": {}}, run.last)
    assert run.last.read_bytes() == before
    assert os.listdir(run.last.parent) == ["last.ckpt"]


class SaveBehindTwo(Callback):
    """Saves behind the second step: the first one's weights are their own average."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def test_a_weight_average_is_resumed_and_its_checkpoint_holds_what_is_trained(tmp_path):
    file = tmp_path / "two.ckpt"

    def trained(*callbacks, resume=None):
        torch.manual_seed(0)
        module = Distillation(concepts=[Concept("cat", "dog")], backbone=TinyBackbone(), lr=1e-2)
        plain = {"callbacks": [*callbacks], "plugins": PlainCheckpointIO()}
        trainer = quiet_trainer(max_steps=3, default_root_dir=tmp_path, **plain)
        trainer.fit(module, PromptData(batch_size=1), ckpt_path=resume)
        return edit_of(module)

    unbroken = trained(EMAWeightAveraging(decay=0.5), SaveBehindTwo(file))
    resumed = trained(EMAWeightAveraging(decay=0.5), resume=file)
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)
    saved = read_checkpoint(file)
    average, current = saved["average"], saved["current_model_state"]
    assert average.keys() == current.keys() == saved["state_dict"].keys()
    assert not any(torch.equal(average[name], current[name]) for name in average)  # the control
