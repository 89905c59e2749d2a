"""Fine-tuning of a copy: the loss by hand, what is trained, and that the model itself is left
alone.
"""

import pytest
import torch
from trivial import Idle

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.fine_tuning import FineTuning, trained_parameters
from erasure_lightning.diffusion.latent_dataset import LatentDataset
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.receler import Receler
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.methods.spm import SPM
from erasure_lightning.testing import quick_fit

PROMPTS = ["a cat", "a dog", "a star"]


def latent_dataset(backbone):
    return LatentDataset(backbone, PROMPTS, 0, steps=2, guidance=3.0)


def tuning(backbone, prompts=PROMPTS, **arguments):
    return FineTuning(backbone, latent_dataset(backbone), prompts, **({"lr": 1e-2} | arguments))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model, before):
    return {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }


def predict(model):
    x = torch.linspace(-2, 2, 256).view(1, 4, 8, 8)
    return model.denoise(x, torch.tensor([500]), model.encode(["a cat"])).detach()


@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
@pytest.mark.parametrize("train", ["all", "everything"])
def test_the_loss_is_plain_denoising(prediction, train):
    backbone = TinyBackbone(prediction=prediction)
    tuned = tuning(backbone, train=train)
    torch.manual_seed(3)
    loss = tuned.loss()
    torch.manual_seed(3)
    rows = (torch.rand(8) * 3).long().tolist()
    x, t, target = tuned.dataset.noised(rows)
    predicted = backbone.denoise(x, t, backbone.encode([PROMPTS[row] for row in rows]))
    assert len(set(rows)) > 1
    assert torch.allclose(loss, (predicted - target).square().mean(), rtol=1e-4)


@pytest.mark.parametrize("train", ["x", "x-strict", "u", "all", "text", "everything"])
def test_it_trains_what_it_was_told_and_nothing_of_the_model_itself(tiny, train):
    before = weights(tiny)
    model = tuning(tiny, train=train).advance(2)
    assert not moved(tiny, before)
    assert not any(p.requires_grad or p.grad is not None for p in tiny.parameters())
    named = set(trained_parameters(tiny, train))
    assert moved(model, before) <= named
    # A bias before a norm has no gradient.
    assert len(moved(model, before)) > 0.9 * len(named)
    texts = {name for name in named if name.startswith("text_encoders")}
    assert bool(texts) == (train in ("text", "everything"))
    assert (texts == named) == (train == "text")


def test_parameters_that_a_method_still_trains_get_no_gradient():
    module = quick_fit(SAGE(concepts=[Concept("cat", "dog")], backbone=TinyBackbone()), 1)
    held = list(module.editable().values())
    for parameter in held:
        parameter.grad = None
    assert all(parameter.requires_grad for parameter in held)
    tuning(module.backbone).advance(1)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in held)


@pytest.mark.parametrize("method", [SPM, Receler])
def test_a_model_with_adapters_is_copied_with_them(method):
    module = quick_fit(
        method(concepts=[Concept("cat", "dog")], backbone=TinyBackbone(), lr=1e-2), 2
    )
    edited = module.backbone.requires_grad_(False).eval()
    before = weights(edited)
    prediction = predict(edited)
    tuned = tuning(edited)
    assert torch.equal(predict(tuned.model), prediction)
    # The control: the adapters do something.
    assert not torch.equal(prediction, predict(module.original))
    assert not torch.allclose(predict(tuned.advance(2)), prediction, atol=1e-4)
    assert torch.equal(predict(edited), prediction)
    assert not moved(edited, before)


def test_no_step_and_no_rate_leave_the_copy_as_it_was(tiny):
    before = weights(tiny)
    assert not moved(tuning(tiny).advance(0), before)
    assert not moved(tuning(tiny, lr=0.0).advance(3), before)
    assert moved(tuning(tiny).advance(1), before)  # the control


def test_a_seed_gives_one_model_however_often_it_halts(tiny):
    halting = tuning(tiny)
    halting.advance(1)
    torch.rand(5)  # what a measurement in between draws
    assert not moved(halting.advance(3), weights(tuning(tiny).advance(3)))
    assert moved(tuning(tiny, seed=1).advance(3), weights(halting.model))


def test_each_step_is_on_as_many_images_as_a_batch_drawn_anew(tiny):
    tuned = tuning(tiny, batch_size=12)
    drawn = []
    noised = tuned.dataset.noised
    tuned.dataset.noised = lambda rows: drawn.append(tuple(rows)) or noised(rows)
    tuned.advance(3)
    assert [len(rows) for rows in drawn] == [12] * 3
    assert len(set(drawn)) == 3


def test_the_caller_s_draws_are_not_disturbed(tiny):
    torch.manual_seed(1)
    expected = torch.rand(1)
    tuned = tuning(tiny)
    torch.manual_seed(1)
    tuned.advance(2)
    assert torch.equal(torch.rand(1), expected)


def test_it_learns_what_it_looks_at(tiny):
    def missed(model):
        torch.manual_seed(9)
        probe = tuning(model, batch_size=32)
        return probe.loss().item()

    before = missed(tiny)
    assert missed(tuning(tiny).advance(40)) < 0.9 * before
    idle = quick_fit(Idle(concepts=[Concept("cat", "dog")], backbone=TinyBackbone()), 1)
    assert missed(tuning(idle.backbone, lr=0.0).advance(3)) == pytest.approx(before)


def test_fewer_prompts_than_images_are_the_first_images(tiny):
    tuned = tuning(tiny, PROMPTS[:1])
    seen = []
    tuned.dataset.noised = lambda rows: (
        seen.extend(rows) or LatentDataset.noised(tuned.dataset, rows)
    )
    tuned.advance(3)
    assert seen == [0] * 24


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr": -1.0}, "Fine-tuning needs lr of at least 0; found -1.0"),
        ({"batch_size": 0}, "Fine-tuning needs batch_size of at least 1; found 0"),
    ],
)
def test_numbers_out_of_range(tiny, arguments, words):
    with pytest.raises(ErasureError, match=words):
        tuning(tiny, **arguments)
