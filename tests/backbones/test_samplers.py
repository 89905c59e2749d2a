"""Every scheduler class of diffusers is used as in the stock pipeline, or refused in one line."""

from functools import cache

import diffusers
import pytest
import torch

from erasure_lightning.backbones.sampler import Sampler
from erasure_lightning.backbones.stable_diffusion import StableDiffusion
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.diffusion.sampling import final_latents, rollout, sample_latents
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.latent_sources import SourceModels
from erasure_lightning.training.trajectory_bank import TrajectoryBank

#: Schedulers that can be used; a new one of diffusers must be added here or be refused.
SUPPORTED = {
    "CogVideoXDDIMScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler",
    "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler",
    "TCDScheduler", "UniPCMultistepScheduler",
}  # fmt: skip

#: Schedulers that draw noise at their steps.
STOCHASTIC = {
    "DDPMParallelScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "LCMScheduler", "SASolverScheduler",
}  # fmt: skip

#: Schedulers whose config needs what no Stable Diffusion pipeline has.
UNBUILT = {"AmusedScheduler", "RFD4ProteinaScheduler", "VQDiffusionScheduler"}

# Deprecations inside diffusers, thousands per rollout.
pytestmark = pytest.mark.filterwarnings("ignore")

NOISING = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
SENTENCES = PromptBatch(["a {}", "the {}", "a {}"], ["cat", "star", "cat"], ["dog", "", "dog"])
DRAWN = {"steps": 4, "guidance": 3.0}
PROMPTS, SEEDS = ["a dog", "a cat", "the star"], [1, 7, 3]


@cache
def classes():
    """Every scheduler class of diffusers, by name."""
    schedulers = {name: getattr(diffusers, name, None) for name in dir(diffusers.schedulers)}
    return {
        n: c
        for n, c in schedulers.items()
        if isinstance(c, type) and issubclass(c, diffusers.SchedulerMixin)
    }


def tried():
    """Names of the other schedulers that a Stable Diffusion folder could have."""
    names = set(classes()) - SUPPORTED - UNBUILT
    return sorted(name for name in names if classes()[name] is not diffusers.SchedulerMixin)


VARIANTS = [(name, "epsilon", {}) for name in sorted(SUPPORTED)]
#: One scheduler of each kind is enough for velocity.
KINDS = (
    "DDIM", "DDPM", "DPMSolverMultistep", "EulerAncestralDiscrete", "HeunDiscrete", "LCM", "PNDM",
)  # fmt: skip
VARIANTS += [(f"{kind}Scheduler", "v_prediction", {}) for kind in KINDS]
TRAILING = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
VARIANTS += [
    (name, "v_prediction", TRAILING)
    for name in ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler")
]
VARIANTS += [
    ("DPMSolverMultistepScheduler", "epsilon", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", "epsilon", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", "epsilon", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", "epsilon", {"timestep_spacing": "linspace"}),
    ("PNDMScheduler", "epsilon", {"skip_prk_steps": True}),
]


def pipeline(name, prediction="epsilon", settings=None):
    """The tiny model as a stock pipeline with a sampler."""
    stock = TinyBackbone().to_pipeline()
    config = {
        **NOISING,
        "steps_offset": 1,
        "clip_sample": False,
        "prediction_type": prediction,
        **(settings or {}),
    }
    stock.scheduler = getattr(diffusers, name).from_config(config)
    stock.set_progress_bar_config(disable=True)
    return stock


def identity(variant):
    name, prediction, settings = variant
    return "-".join([name.removesuffix("Scheduler"), prediction, *map(str, settings.values())])


@pytest.fixture(scope="module", params=VARIANTS, ids=identity)
def stock(request):
    return pipeline(*request.param)


@pytest.fixture(scope="module")
def model(stock):
    return StableDiffusion.from_pipeline("stock", stock)


@pytest.fixture(scope="module")
def drawn(model):
    """Latents of `PROMPTS`."""
    return sample_latents(model, PROMPTS, SEEDS, **DRAWN)


def test_what_is_listed_is_there():
    assert set(classes()) >= SUPPORTED | UNBUILT
    for name in UNBUILT:
        with pytest.raises((TypeError, ValueError)):
            classes()[name].from_config(NOISING)


@pytest.mark.parametrize("name", tried())
def test_the_others_are_refused_in_one_line(name):
    stock = TinyBackbone().to_pipeline()
    kind = classes()[name]
    own = {"beta_schedule": "squaredcos_cap_v2"} if name == "UnCLIPScheduler" else {}
    stock.scheduler = kind.from_config({**NOISING, **own, "steps_offset": 1, "clip_sample": False})
    with pytest.raises(
        ErasureError,
        match=rf"found {name}, which has none| in {name}\. Set the |needs another sampler: {name} ",
    ) as refused:
        StableDiffusion.from_pipeline("stock", stock)
    assert "\n" not in str(refused.value)


class TestSupported:
    def test_a_bank_holds_what_the_denoiser_was_asked_at_every_evaluation(self, stock, model):
        bank = TrajectoryBank(trajectories=3, **DRAWN)
        bank.update(SourceModels(model, model, lambda count, number: SENTENCES, 2, seed=5))
        stock.scheduler.set_timesteps(4)
        assert bank.length == len(stock.scheduler.timesteps) >= 4  # more where a step has stages
        rows, columns = torch.arange(3).repeat(bank.length), torch.arange(bank.length)
        batch = bank.at(rows, columns.repeat_interleave(3), model)
        prompts, unprompted = model.encode(batch.prompts), model.unconditional(len(rows))
        anew = model.denoise(batch.x, batch.t, prompts)
        unconditional = model.denoise(batch.x, batch.t, unprompted)
        assert torch.allclose(batch.teacher.concept, anew, atol=1e-5)
        assert torch.allclose(batch.teacher.unconditional, unconditional, atol=1e-5)
        # the control: neither the prompt nor the time is without effect, on any of the latents
        other = model.denoise(batch.x, (batch.t + 300) % 900, prompts)
        for control in (unconditional, other):
            assert ((anew - control).abs().flatten(1).amax(1) > 1e-4).all()

    def test_an_image_does_not_depend_on_its_company(self, model, drawn):
        alone = sample_latents(model, PROMPTS[1:2], SEEDS[1:2], **DRAWN)
        assert torch.allclose(alone[0], drawn[1], atol=1e-5 * max(1, float(drawn.abs().max())))
        assert not torch.allclose(drawn[0], drawn[1], atol=1e-2)

    def test_an_edit_of_nothing_measures_0(self, model, drawn):
        original = model.frozen_copy(model.cross_attention_parameters())
        assert torch.equal(sample_latents(original, PROMPTS, SEEDS, **DRAWN), drawn)
        with torch.no_grad():
            next(iter(original.cross_attention_parameters().values())).mul_(3)
        assert not torch.equal(sample_latents(original, PROMPTS, SEEDS, **DRAWN), drawn)

    def test_latents_are_the_stock_pipelines_bit_for_bit(self, stock, drawn):
        theirs = stock(
            PROMPTS,
            num_inference_steps=4,
            guidance_scale=3.0,
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
            output_type="latent",
        ).images
        assert torch.equal(drawn, theirs)

    def test_the_noise_of_its_steps_comes_from_the_seeds(self, stock, model, monkeypatch):
        """The same first latents, and generators that go on elsewhere."""
        start = model.noise([7])
        noise = Sampler.noise
        monkeypatch.setattr(Sampler, "noise", lambda *args: (noise(*args), start)[1])
        conditioning = model.encode(["a cat"])
        one, other = (
            final_latents(rollout(model, conditioning, [seed], **DRAWN)) for seed in (1, 2)
        )
        noisy = type(stock.scheduler).__name__ in STOCHASTIC or "sde" in str(stock.scheduler.config)
        assert torch.equal(one, other) != noisy
