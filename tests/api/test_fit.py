import signal
import threading

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from erasure_lightning.api.fit import fit
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.interrupt import Interrupted
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.edits.edit import read_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.esd import ESD
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.training.trajectory_bank import TrajectoryBank


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_notebook", "ddp_spawn"])
def test_ranks_that_are_children_are_refused_before_training(strategy, tmp_path):
    module = ESD(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    several = {"accelerator": "cpu", "devices": 2, "strategy": strategy}
    with pytest.raises(ErasureError, match="as a notebook starts them. Run it as a script"):
        fit(module, run_dir=tmp_path, max_steps=1, progress_bar=False, **several)
    assert not [*tmp_path.iterdir()]


def test_equal_callbacks_with_a_state_are_refused_before_training(tmp_path):
    module = ESD(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    callbacks = [LocalNoisePreservation(), LocalNoisePreservation()]
    with pytest.raises(ErasureError, match="each LocalNoisePreservation with other arguments"):
        fit(module, run_dir=tmp_path, callbacks=callbacks, max_steps=1, progress_bar=False)
    assert not [*tmp_path.iterdir()]


class Stop(Callback):
    """Interrupts a run in its second step."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            signal.raise_signal(signal.SIGINT)


def esd(concept="cat"):
    bank = TrajectoryBank(trajectories=1, steps=2)
    return ESD(concepts=[Concept(concept, "dog")], backbone=TinyBackbone(), latents=bank)


def three_steps(module, folder, *callbacks, **options):
    callbacks = [LocalNoisePreservation(prompts=["a boat"]), *callbacks]
    settings = {"max_steps": 3, "accelerator": "cpu", "progress_bar": False, "measure": False}
    return fit(module, run_dir=folder, callbacks=callbacks, **settings, **options)


def test_a_run_that_was_interrupted_is_resumed_bit_for_bit(tmp_path):
    """Also with the same module, on which no retention callback of the first part acts any more."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    three_steps(esd(), whole)
    module = esd()
    how = rf"`fit\(..., run_dir='{cut}', resume=True\)`"
    with pytest.raises(Interrupted, match=f"after step 2 and saved; go on with {how}"):
        three_steps(module, cut, Stop())
    with pytest.raises(ErasureError, match=f"an unfinished run. Continue it with {how}"):
        three_steps(esd(), cut)
    with pytest.raises(ErasureError, match="its own concepts.*'cat'.*or start another run"):
        three_steps(esd("star"), cut, resume=True)
    three_steps(module, cut, resume=True)
    one, other = (read_edit(run / "edit.safetensors").tensors for run in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    with pytest.raises(ErasureError, match=rf"Measure it with `evaluate\('{cut}', pipeline"):
        three_steps(esd(), cut)
    with pytest.raises(ErasureError, match="left to resume. Measure it with `evaluate"):
        three_steps(esd(), cut, resume=True)
    with pytest.raises(ErasureError, match="No checkpoint at"):
        three_steps(esd(), tmp_path / "none", resume=True)


def test_a_run_in_a_thread_has_no_signals(tmp_path):
    thread = threading.Thread(target=three_steps, args=(esd(), tmp_path))
    thread.start()
    thread.join()
    assert (tmp_path / "edit.safetensors").exists()
