"""The space in which losses compare predictions, and how times are sampled."""

import pytest
import torch
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.process import RectifiedFlow
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.methods.advunlearn import AdvUnlearn
from erasure_lightning.methods.all_but_one import AllButOne
from erasure_lightning.methods.ant import ANT
from erasure_lightning.methods.ca import CA
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.realera import RealEra
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.methods.salun import SalUn
from erasure_lightning.methods.sdd import SDD
from erasure_lightning.methods.spm import SPM
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.latent_sources import NoisyBatch, PureNoise, Teacher, pure_noise
from erasure_lightning.training.time_sampling import DENSITIES, logit_normal_density

#: Two sentences at one time, so that a loss in another space is one factor times the native.
BATCH = PromptBatch(["a {}", "the {}"], ["cat", "star"], ["dog", "heart"], [0, 1])
TIME = 300.0
IMAGES = {"latents": GeneratedImages(images=1, steps=1)}
METHODS = [
    (AdvUnlearn, {"attack_from": 0, "attack_steps": 0}),
    (AllButOne, {}),
    (ANT, {"early": 0.5}),
    (CA, {}),
    (ESD, {}),
    (RealEra, {}),
    (SAGE, {"erase_space": "noise", "check_from": 0, "check_steps": 0}),
    (SalUn, {"alpha": 0.0} | IMAGES),
    (SDD, {}),
    (SPM, {}),
]


def make(method, family=TinyFlux, **arguments):
    concepts = [Concept("cat", "dog"), Concept("star", "heart")]
    module = method(concepts=concepts, backbone=family(), seed=1, **arguments)
    module.configure_model()
    with torch.no_grad():
        for parameter in module.trainable().values():
            parameter.add_(0.01)
    return module


def batch_at(module, t=TIME, batch=BATCH):
    x, _ = pure_noise(module.backbone, len(batch.concepts))
    times = torch.full((len(x),), t)
    return NoisyBatch(x, times, batch, Teacher(module.original, x, times, batch))


def loss(module, batch):
    torch.manual_seed(2)
    return module.erasure_loss(batch)


@pytest.mark.parametrize(("method", "arguments"), METHODS, ids=lambda v: getattr(v, "__name__", ""))
def test_the_loss_of_a_flow_in_other_spaces_is_weighted(method, arguments):
    module = make(method, **arguments)
    batch = batch_at(module)
    native = loss(module, batch)
    s = TIME / 1000
    for space, scale in {"velocity": 1, "epsilon": 1 - s, "sample": s}.items():
        module.loss_space = space
        assert torch.allclose(loss(module, batch), scale**2 * native, rtol=1e-4)


@pytest.mark.parametrize("family", [TinyBackbone, TinyFlux])
@pytest.mark.parametrize("space", ["epsilon", "sample"])
def test_esd_in_another_space_compares_converted_predictions(family, space):
    module = make(ESD, family, loss_space=space)
    batch = batch_at(module)
    teacher = batch.teacher
    process = module.backbone.process
    convert = process.epsilon if space == "epsilon" else process.clean
    student, concept, unconditional = (
        convert(prediction, batch.x, batch.t)
        for prediction in (module.student(batch), teacher.concept, teacher.unconditional)
    )
    by_hand = mse_loss(student, unconditional - (concept - unconditional))
    assert torch.allclose(loss(module, batch), by_hand, rtol=1e-3)


def test_natively_the_error_is_the_plain_one_to_the_bit():
    module = make(ESD, TinyBackbone)
    batch = batch_at(module)
    teacher = batch.teacher
    target = teacher.concept - 2 * (teacher.concept - teacher.unconditional)
    assert torch.equal(loss(module, batch), mse_loss(module.student(batch), target))


def test_rows_are_weighted_each_by_its_own_time():
    module = make(ESD, loss_space="epsilon")
    ones = torch.ones(2, 4, 8, 8)
    times = torch.tensor([0.0, 1000.0])
    assert module.prediction_errors(ones, 0 * ones, times).tolist() == [1.0, 0.0]
    assert module.prediction_error(ones, 0 * ones, times) == 0.5


def test_the_logit_normal_density_is_finite_at_the_ends_and_sums_to_one():
    shares = torch.linspace(0, 1, 1001)
    density = logit_normal_density(shares)
    assert density.isfinite().all()
    assert density[[0, -1]].max() < 1e-20
    assert torch.isclose(torch.trapezoid(density, shares), torch.tensor(1.0), atol=1e-4)


@pytest.mark.parametrize("family", [TinyBackbone, TinyFlux])
def test_pure_noise_at_logit_normal_times(family):
    model = family()
    many = PromptBatch(["a {}"] * 2000, ["cat"] * 2000, [""] * 2000, [0] * 2000)
    torch.manual_seed(0)
    t = model.process.draw_times(len(many.concepts), DENSITIES["logit-normal"])
    logits = model.process.share(t).logit()
    assert abs(logits.mean()) < 0.1
    assert abs(logits.std() - 1) < 0.1
    x, t = pure_noise(model, 2, "logit-normal")
    assert x.isfinite().all()
    assert PureNoise("logit-normal").times == "logit-normal"


def test_pure_noise_has_times_of_its_density():
    model = TinyBackbone()
    torch.manual_seed(0)
    share = model.process.share(pure_noise(model, 500, "importance")[1])
    assert ((share > 0.15) & (share < 0.45)).float().mean() > 0.9
    share = model.process.share(pure_noise(model, 500)[1])
    assert ((share > 0.15) & (share < 0.45)).float().mean() < 0.5  # the control


def test_uniform_times_are_drawn_as_before():
    torch.manual_seed(0)
    first = RectifiedFlow().draw_times(4, DENSITIES["uniform"])
    torch.manual_seed(0)
    assert torch.equal(first, RectifiedFlow().draw_times(4))
