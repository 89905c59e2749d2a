"""Saliency: what is marked, and that the rest does not move, also after a resume."""

import pytest
import torch
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.testing import edit_of, quick_fit
from erasure_lightning.training.saliency import SalientErasure, salient_masks, summed_gradients

SLOPES = {"a": torch.tensor([[1.0, -4.0], [2.0, 0.0]]), "b": torch.tensor([-8.0, 16.0])}


class Salient(SalientErasure):
    """Says nothing of the concept; what is salient is so at these very latents."""

    calls = 0

    def erasure_loss(self, batch):
        return mse_loss(self.student(batch), torch.zeros_like(batch.x))

    def saliency(self):
        self.calls += 1
        batch = self.sentences(2, 0, salt=1)
        loss = self.erasure_loss(self.noisy_batch(batch))
        return salient_masks(self.gradients(lambda _: loss, [None]), self.share)


def salient_erasure(**arguments):
    module = Salient(
        concepts=[Concept("cat", "dog")], backbone=TinyBackbone(), lr=1e-2, **arguments
    )
    module.configure_model()
    return module


class TestMasks:
    def test_the_largest_are_marked_at_one_cut_for_all(self):
        masks = salient_masks(SLOPES, 0.5)
        assert masks["a"].tolist() == [[False, True], [False, False]]
        assert masks["b"].tolist() == [True, True]

    def test_or_tensor_by_tensor(self):
        masks = salient_masks(SLOPES, 0.5, each=True)
        assert masks["a"].tolist() == [[False, True], [True, False]]
        assert masks["b"].tolist() == [False, True]

    def test_they_are_never_the_smallest(self):
        """ANT's official masks were."""
        for masks in (salient_masks(SLOPES, 0.5), salient_masks(SLOPES, 0.5, each=True)):
            assert masks["b"][1]
            assert not masks["a"][0, 0]

    def test_the_share_is_rounded_down(self):
        assert sum(mask.sum() for mask in salient_masks(SLOPES, 0.49).values()) == 2
        assert not any(mask.any() for mask in salient_masks(SLOPES, 0.1).values())

    def test_ties_are_all_marked_and_what_has_no_gradient_never_is(self):
        masks = salient_masks({"a": torch.tensor([3.0, -3.0, 3.0, 0.0]), "b": torch.zeros(4)}, 0.25)
        assert masks["a"].tolist() == [True, True, True, False]
        assert not masks["b"].any()

    def test_they_are_boolean(self):
        assert all(mask.dtype == torch.bool for mask in salient_masks(SLOPES, 0.5).values())


def test_gradients_are_summed_with_their_signs_before_anyone_looks_at_their_size():
    parameters = {
        "a": torch.tensor([1.0, 1.0], requires_grad=True),
        "unused": torch.tensor([1.0], requires_grad=True),
    }
    losses = (
        (sign * parameters["a"] * torch.tensor([1.0, 2.0 + sign])).sum() for sign in (1.0, -1.0)
    )
    total = summed_gradients(losses, parameters)
    assert total["a"].tolist() == [0.0, 2.0]  # 1 - 1, where absolute values would give 2; and 3 - 1
    assert total["unused"].tolist() == [0.0]
    assert parameters["a"].grad is None


def test_what_is_not_salient_stays_bit_identical():
    module = salient_erasure(share=0.3)
    before = edit_of(module)
    quick_fit(module, 4)
    moved = {name: value != before[name] for name, value in edit_of(module).items()}
    assert all((moved[name] <= module.masks[name]).all() for name in moved)
    assert sum(int(m.sum()) for m in moved.values()) > 0.25 * sum(m.numel() for m in moved.values())


def test_its_draws_are_the_seed_s():
    def masks(seed, before):
        module = salient_erasure(seed=seed)
        module.saliency = lambda: {"weight": torch.rand(64) < 0.5}
        torch.manual_seed(before)
        module.on_train_start()
        return module.masks["weight"].tolist()

    assert masks(0, before=1) == masks(0, before=2) != masks(1, before=1)


def test_with_the_whole_share_everything_moves_and_no_saliency_is_asked():
    module = quick_fit(salient_erasure(share=1.0), 2)
    assert not module.masks
    assert not module.calls
    before = edit_of(salient_erasure())
    assert all(
        (value != before[name]).float().mean() > 0.9 for name, value in edit_of(module).items()
    )


def test_a_resumed_run_goes_on_with_the_masks_it_had(tmp_path):
    first = quick_fit(salient_erasure(share=0.3), 2, total=4, save=tmp_path / "half.ckpt")
    resumed = quick_fit(salient_erasure(share=0.3), 4, resume=tmp_path / "half.ckpt")
    assert not resumed.calls
    assert all(torch.equal(first.masks[name], mask) for name, mask in resumed.masks.items())
    other = quick_fit(salient_erasure(share=0.3, seed=1), 2)  # the control: masks are not all alike
    assert not all(torch.equal(first.masks[name], mask) for name, mask in other.masks.items())


def test_the_edit_says_how_much_of_the_model_may_move():
    assert quick_fit(salient_erasure(share=0.3), 1).description()["salient"] == pytest.approx(
        0.3, abs=0.01
    )
    assert salient_erasure(share=1.0).description()["salient"] == 1


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ErasureError, match="needs share above 0 and at most 1; found 0"):
        salient_erasure(share=0)


def test_masks_that_let_nothing_move_are_refused():
    with pytest.raises(ErasureError, match="needs a weight that may move; found none"):
        quick_fit(salient_erasure(share=1e-9), 1)


def test_weights_that_decay_are_refused_where_masks_hold_them():
    with pytest.raises(
        ErasureError,
        match="needs a weight_decay of 0, for decay moves what the masks hold; found 0.01",
    ):
        salient_erasure(share=0.3, optimizer="adamw")
    for arguments in ({"share": 1.0}, {"share": 0.3, "weight_decay": 0.0}):
        assert salient_erasure(optimizer="adamw", **arguments).optimizer == "adamw"
