"""CA: the contract, its losses by hand, its images, the start token, and the erasure itself."""

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from recognition import KEPT, recognised, recognised_before
from shipped import numbers

from erasure_lightning.backbones.tiny import TinyBackbone, TinyXL
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.ca import CA
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.trajectory_bank import TrajectoryBank

BATCH = PromptBatch(["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", ""], [0, 1])
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])


def images(count=4):
    return GeneratedImages(images=count, steps=2, guidance=2.0, of="anchor")


ARGUMENTS = numbers("ca", latents=images(2))


def ca(prediction="epsilon", **arguments):
    concepts = [Concept("cat", "dog"), Concept("star")]
    backbone = arguments.pop("backbone", None) or TinyBackbone(prediction=prediction)
    return CA(concepts=concepts, backbone=backbone, **(ARGUMENTS | arguments))


def shifted(module):
    """A module that has generated its images, and whose student differs from the original."""
    quick_fit(module, 1)
    for parameter in module.editable().values():
        parameter.data.add_(0.01)
    return module


def ask(model, x, t, prompts):
    return model.denoise(x, t, model.encode(prompts))


@pytest.mark.parametrize(
    "arguments", [{}, {"target": "noise"}, {"prior": 1.0, "train": "all"}], ids=str
)
def test_contract(arguments):
    check_method(CA, **(VARIANT if arguments else {}), **(ARGUMENTS | arguments))


class TestLoss:
    def test_the_model_s_own_words_for_the_anchor(self):
        module = shifted(ca())
        expected = ask(module.backbone, X, T, ["a photo of a dog", ""])
        by_hand = (ask(module.backbone, X, T, BATCH.prompts) - expected).square().mean()
        assert torch.allclose(module.erasure_loss(noisy(module, X, T, BATCH)), by_hand)
        frozen = ask(
            module.original, X, T, ["a photo of a dog", ""]
        )  # the control: not the original's words
        assert not torch.allclose(expected, frozen, atol=1e-3)

    @pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
    def test_noise_in_the_form_that_the_model_predicts(self, prediction):
        module = shifted(ca(prediction, target="noise"))
        torch.manual_seed(3)
        batch = module.noisy_batch(BATCH)
        # what a perfect model would see is an image
        clean, images = (
            module.backbone.process.clean(batch.target, batch.x, batch.t),
            module.latents.dataset.latents,
        )
        assert all(min((image - c).abs().max() for image in images) < 1e-2 for c in clean)
        by_hand = (
            (ask(module.backbone, batch.x, batch.t, batch.prompts) - batch.target).square().mean()
        )
        assert torch.allclose(module.erasure_loss(batch), by_hand)

    def test_the_prior_is_one_more_denoising_of_the_anchor(self):
        plain, with_prior = shifted(ca()), shifted(ca(prior=0.5))
        with_prior.load_state_dict(plain.state_dict())
        torch.manual_seed(3)
        both = with_prior.erasure_loss(noisy(with_prior, X, T, BATCH))
        torch.manual_seed(3)
        again = with_prior.noisy_batch(BATCH)
        prompts = again.sentences.anchor_or_empty_prompts
        denoised = (
            (ask(with_prior.backbone, again.x, again.t, prompts) - again.target).square().mean()
        )
        assert torch.allclose(both, plain.erasure_loss(noisy(plain, X, T, BATCH)) + 0.5 * denoised)

    def test_without_an_anchor_target_and_prior_are_of_the_prompt_of_the_images(self):
        """SDXL's unconditional predictions read zeros."""
        module = shifted(ca(backbone=TinyXL(), prior=0.5))
        batch = noisy(module, X, T, BATCH)
        torch.manual_seed(3)
        loss = module.erasure_loss(batch)
        torch.manual_seed(3)
        second = module.noisy_batch(BATCH)
        target = ask(module.backbone, X, T, ["a photo of a dog", ""])
        prompts = second.sentences.anchor_or_empty_prompts
        prior = ask(module.backbone, second.x, second.t, prompts) - second.target
        student = ask(module.backbone, X, T, BATCH.prompts)
        by_hand = (student - target).square().mean() + 0.5 * prior.square().mean()
        assert torch.allclose(loss, by_hand)
        zeros = module.backbone.unconditional()
        other = module.backbone.denoise(X[1:], T[1:], zeros)  # the control
        assert not torch.allclose(target[1:], other, atol=1e-3)


class TestPictures:
    def test_they_are_of_the_anchor_s_sentences_and_of_the_empty_prompt_without_anchor(
        self, monkeypatch
    ):
        recorded = []
        monkeypatch.setattr(
            "erasure_lightning.diffusion.latent_dataset.sample_latents",
            lambda _, p, s, **k: recorded.extend(p) or torch.zeros(len(p), 4, 8, 8),
        )
        shown = quick_fit(ca(), 1).latents.sentences
        assert {c: p.text for c, p in zip(shown.concepts, recorded, strict=True)}["star"] == ""
        assert all(
            "dog" in p.text for c, p in zip(shown.concepts, recorded, strict=True) if c == "cat"
        )

    def test_the_original_draws_them_so_that_a_resumed_run_finds_the_same(self):
        module = quick_fit(ca(lr=0.1), 3)
        trained, module.latents.dataset = module.latents.dataset.latents, None
        module.on_train_start()
        assert torch.equal(module.latents.dataset.latents, trained)
        module.original = module.backbone  # the control
        module.on_train_start()
        assert not torch.allclose(module.latents.dataset.latents, trained, atol=1e-3)

    def test_by_default_they_are_of_the_anchor(self):
        source = CA(concepts=[Concept("cat")], backbone=TinyBackbone()).latents
        numbers = (source.of, source.images, source.steps, source.guidance)
        assert numbers == ("anchor", 1000, 25, 6.0)

    def test_every_concept_has_one_however_few_are_named(self):
        assert set(quick_fit(ca(latents=images(1)), 1).latents.sentences.concepts) == {
            "cat",
            "star",
        }

    def test_a_step_reads_the_sentence_of_the_image_that_was_drawn(self):
        module = quick_fit(ca(), 1)
        batch, drawn = module.noisy_batch(BATCH), module.latents.sentences
        assert batch.sentences.concepts == BATCH.concepts
        assert batch.sentences == drawn.rows(batch.rows.tolist())


def test_no_gradient_passes_the_start_token():
    module = ca()
    module.configure_model()
    gradients = []
    layer = next(iter(module.backbone.text_layers().values()))
    layer.register_forward_hook(lambda _, __, out: out.register_hook(gradients.append) and None)
    batch = noisy(module, X, T, BATCH)
    module.student(batch).sum().backward()
    GradientErasure.student(module, batch).sum().backward()
    held, control = gradients
    assert held[:, 0].abs().max() == 0 < control[:, 0].abs().max()
    assert torch.allclose(held[:, 1:], control[:, 1:], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prior": -1.0}, "CA needs prior of at least 0; found -1.0"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        ca(**arguments)


class TestTrajectories:
    def test_contract(self):
        check_method(
            CA, **VARIANT, **(ARGUMENTS | {"latents": TrajectoryBank(trajectories=2, steps=3)})
        )

    @pytest.mark.parametrize("arguments", [{"target": "noise"}, {"prior": 0.5}], ids=str)
    def test_what_needs_clean_latents_is_refused(self, arguments):
        module = ca(latents=TrajectoryBank(trajectories=2, steps=3), **arguments)
        with pytest.raises(
            ErasureError, match="needs images; give latents GeneratedImages or ImageFolder"
        ):
            quick_fit(module, 1)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    shown = GeneratedImages(images=4, steps=10, guidance=6, of="anchor")
    arguments = numbers("ca", latents=shown, lr=1e-3)
    module = quick_fit(
        CA(backbone="emoji-world", concepts=[Concept("cigarette", "lollipop")], **arguments), 15
    )
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) == recognised_before(module, KEPT) == 1
