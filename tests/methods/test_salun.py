"""SalUn: the contract, its loss and its saliency by hand, what may move, the official
traps, the erasure.
"""

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from recognition import KEPT, recognised, recognised_before
from shipped import numbers

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.salun import _CHUNK, SalUn
from erasure_lightning.testing import check_method, edit_of, quick_fit
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star")]
BATCH = PromptBatch(["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", ""], [0, 1])
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])


def images(count=2):
    """So many of each of the two concepts."""
    return GeneratedImages(images=count, steps=2, guidance=4.0)


#: What the shipped config gives.
ARGUMENTS = numbers("salun", latents=images(), remaining=4)


def salun(prediction="epsilon", **arguments):
    settings = ARGUMENTS | arguments
    return SalUn(concepts=CONCEPTS, backbone=TinyBackbone(prediction=prediction), **settings)


def begun(**arguments):
    """A method with images and masks, that has not taken a step worth the name."""
    return quick_fit(salun(lr=1e-12, **arguments), 1)


def ask(model, prompts):
    return model.denoise(X, T, model.encode(prompts))


def test_contract():
    check_method(SalUn, **(ARGUMENTS | {"latents": images(1), "remaining": 1}))


def test_contract_without_masks_and_pictures_of_what_remains():
    check_method(SalUn, **VARIANT, train="x", share=1.0, alpha=0.0, **ARGUMENTS)


class TestLoss:
    def test_forgetting_by_hand(self):
        module = begun(alpha=0.0)
        assert torch.allclose(
            module.erasure_loss(noisy(module, X, T, BATCH)),
            (ask(module.backbone, BATCH.prompts) - ask(module.backbone, ["a photo of a dog", ""]))
            .square()
            .mean(),
        )

    def test_its_target_is_the_network_in_training_and_has_no_gradient(self):
        """Not the frozen original: where every weight has moved, the two differ."""
        module = begun(alpha=0.0)
        for parameter in module.trainable().values():
            parameter.data.add_(0.01)
        module.original.denoise = lambda *_: pytest.fail("the original predicted")
        target = ask(module.backbone, ["a photo of a dog", ""]).detach()
        by_hand = (ask(module.backbone, BATCH.prompts) - target).square().mean()
        parameters = list(module.trainable().values())
        gradients, expected = (
            torch.autograd.grad(loss, parameters)
            for loss in (module.erasure_loss(noisy(module, X, T, BATCH)), by_hand)
        )
        assert all(
            torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, expected, strict=True)
        )

    @pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
    def test_remembering_by_hand(self, prediction):
        module = begun(alpha=1.0, prediction=prediction)
        loss = (torch.manual_seed(3), module.remaining_loss(2))[1]
        torch.manual_seed(3)
        rows = torch.randint(4, (2,)).tolist()
        process = module.backbone.process
        t, noise = process.draw_times(2), torch.randn(2, 4, 8, 8)
        clean, captions = (
            module._remaining_images.latents[rows],
            [module._captions[i] for i in rows],
        )
        now = module.backbone.denoise(
            process.noise(clean, noise, t), t, module.backbone.encode(captions)
        )
        target = noise if prediction == "epsilon" else process.target(clean, noise, t)
        assert torch.allclose(loss, (now - target).square().mean())

    def test_alpha_weighs_it(self):
        module = begun(alpha=0.0)
        forget = module.erasure_loss(noisy(module, X, T, BATCH))
        module.remaining_loss = lambda count: torch.tensor(10.0 * count)
        module.alpha = 0.5
        assert torch.allclose(module.erasure_loss(noisy(module, X, T, BATCH)), forget + 10)


class TestSaliency:
    @pytest.mark.parametrize("count", [_CHUNK, 5])
    def test_by_hand(self, count):
        """Signed gradients of the guided prediction's error, over all images, one threshold."""
        module = begun(latents=images(count))
        torch.manual_seed(11)
        masks = module.saliency()
        torch.manual_seed(11)
        total, parameters = 0, list(module.trainable().values())
        for start in range(0, 2 * count, _CHUNK):
            rows = range(2 * count)[start : start + _CHUNK]
            process, source = module.backbone.process, module.latents
            t, noise = process.draw_times(len(rows)), torch.randn(len(rows), 4, 8, 8)
            batch = noisy(
                module,
                process.noise(source.dataset.latents[list(rows)], noise, t),
                t,
                source.sentences.rows(rows),
            )
            guided = 8.5 * module.student(batch) - 7.5 * module.student(
                batch, module.backbone.unconditional(len(rows))
            )
            loss = -(noise - guided).square().mean(dim=(1, 2, 3)).sum()
            total = total + torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        size = total.abs()
        marked = torch.cat([mask.flatten() for mask in masks.values()])
        assert marked.sum() == len(size) // 2
        assert size[marked].min() >= size[~marked].max()

    def test_a_smaller_share_is_less(self):
        masks = begun(share=0.25, alpha=0.0, latents=images(1)).masks
        marked = sum(int(mask.sum()) for mask in masks.values())
        assert marked == sum(mask.numel() for mask in masks.values()) // 4

    def test_what_is_not_salient_stays_bit_identical(self):
        module = quick_fit(salun(lr=1e-2), 3)
        before = dict(TinyBackbone().named_parameters())
        for name, now in edit_of(module).items():
            assert torch.equal(now[~module.masks[name]], before[name][~module.masks[name]])
        moved = sum(int((now != before[name]).sum()) for name, now in edit_of(module).items())
        assert moved > 0.45 * sum(now.numel() for now in edit_of(module).values())


class TestPictures:
    def test_of_concepts_and_of_everything_else(self):
        module = begun(latents=images(5), remaining=100)
        assert set(module.latents.sentences.concepts) == {"cat", "star"}
        assert len(module.latents.dataset.latents) == 2 * 5
        assert len(module._remaining_images.latents) == 100
        text = " ".join(module._captions)
        assert "bicycle" in text
        assert not {"cat", "star"} & set(text.split())
        assert (
            len(set(module._captions)) == 100
        )  # 79 things of COCO that are not cats, in other captions from then on

    def test_the_order_of_everything_else_is_the_seed_s(self):
        def captions(seed):
            module = salun(seed=seed)
            module.configure_model()
            return module._remaining_captions(20)

        assert captions(0) == captions(0) != captions(1)

    def test_each_concept_has_as_many(self):
        module = begun(latents=images(1))
        assert sorted(module.latents.sentences.concepts) == ["cat", "star"]

    def test_those_of_what_remains_are_not_of_the_concepts_noise(self):
        module = begun()
        concepts, others = module.latents.dataset.latents, module._remaining_images.latents
        assert all((concepts - one).abs().flatten(1).amax(dim=1).min() > 1e-3 for one in others)

    def test_latents_are_of_the_concepts_named(self):
        module = begun(latents=images(3))
        batch = module.noisy_batch(
            PromptBatch(["a {}"] * 3, ["star", "cat", "star"], ["", "dog", ""], [1, 0, 1])
        )
        assert batch.sentences.concepts == ["star", "cat", "star"]
        assert batch.x.shape == (3, 4, 8, 8)
        assert batch.t.shape == (3,)

    def test_all_of_them_are_used(self):
        """Until 2026 the official code showed the same first ones in every step."""
        module, rows = begun(latents=images(3)), set()
        for _ in range(40):
            batch = module.noisy_batch(
                PromptBatch(["a {}"] * 2, ["star", "cat"], ["", "dog"], [1, 0])
            )
            rows |= set(batch.rows.tolist())
        assert rows == set(range(6))

    def test_without_alpha_none_remain(self):
        module = begun(alpha=0.0)
        assert len(module.latents.dataset.latents) == 4
        assert not hasattr(module, "_remaining_images")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": -1.0}, "SalUn needs alpha of at least 0; found -1.0"),
        (
            {"latents": TrajectoryBank()},
            "needs images that the original generates; found TrajectoryBank",
        ),
        ({"share": 1.5}, "SalUn needs share above 0 and at most 1; found 1.5"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        salun(**arguments)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    shown = GeneratedImages(images=4, steps=10, guidance=4)
    arguments = numbers("salun", lr=2e-4, latents=shown, remaining=4)
    module = quick_fit(
        SalUn(backbone="emoji-world", concepts=[Concept("cigarette", "lollipop")], **arguments), 12
    )
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) == 1
