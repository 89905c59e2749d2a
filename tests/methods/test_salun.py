"""SalUn's promises: the contract, its loss and its saliency by hand, what may move, the official traps, the erasure."""

import pytest
import torch
from recognition import KEPT, recognised
from shipped import numbers

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.bank import TrajectoryBank
from erasure_lightning.concepts import Batch, Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.salun import CHUNK, SalUn
from erasure_lightning.testing import check_method, edit_of, fit

CONCEPTS = [Concept("cat", "dog"), Concept("star")]
BATCH = Batch(["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", ""])
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100, 900])

#: What the shipped config gives.
GIVEN = numbers("salun", pictures=4, steps=2)


def salun(prediction="epsilon", **arguments):
    given = GIVEN | arguments
    return SalUn(concepts=CONCEPTS, backbone=TinyBackbone(prediction=prediction), **given)


def begun(**arguments):
    """A method with pictures and masks, that has not taken a step worth the name."""
    return fit(salun(lr=1e-12, **arguments), 1)


def ask(model, prompts):
    return model.denoise(X, T, model.encode(prompts))


def test_contract():
    check_method(SalUn, **GIVEN)


def test_contract_without_masks_and_pictures_of_what_remains():
    check_method(SalUn, thorough=False, train="x", share=1.0, alpha=0.0, **GIVEN)


class TestLoss:
    def test_forgetting_by_hand(self):
        module = begun(alpha=0.0)
        assert torch.allclose(
            module.erasure_loss(X, T, BATCH),
            (ask(module.backbone, BATCH.prompts) - ask(module.backbone, ["a photo of a dog", ""])).square().mean(),
        )

    def test_its_target_is_the_network_in_training_and_has_no_slope(self):
        """Not the frozen original: where every weight has moved, the two differ."""
        module = begun(alpha=0.0)
        for parameter in module.trainable().values():
            parameter.data.add_(0.01)
        module.original.denoise = lambda *_: pytest.fail("asked the original")
        wanted = ask(module.backbone, ["a photo of a dog", ""]).detach()
        by_hand = (ask(module.backbone, BATCH.prompts) - wanted).square().mean()
        parameters = list(module.trainable().values())
        slopes, expected = (
            torch.autograd.grad(loss, parameters) for loss in (module.erasure_loss(X, T, BATCH), by_hand)
        )
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(slopes, expected, strict=True))

    @pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
    def test_remembering_by_hand(self, prediction):
        module = begun(alpha=1.0, prediction=prediction)
        loss = (torch.manual_seed(3), module.remaining(2))[1]
        torch.manual_seed(3)
        rows = torch.randint(4, (2,)).tolist()
        t, noise = torch.randint(1000, (2,)), torch.randn(2, 4, 8, 8)
        clean, process = module._gallery.latents[[4 + i for i in rows]], module.backbone.process
        now = module.student(process.noise(clean, noise, t), t, [module._remaining[i] for i in rows])
        wanted = noise if prediction == "epsilon" else process.target(clean, noise, t)
        assert torch.allclose(loss, (now - wanted).square().mean())

    def test_alpha_weighs_it(self):
        module = begun(alpha=0.0)
        forget = module.erasure_loss(X, T, BATCH)
        module.remaining = lambda count: torch.tensor(10.0 * count)
        module.alpha = 0.5
        assert torch.allclose(module.erasure_loss(X, T, BATCH), forget + 10)


class TestSaliency:
    def test_by_hand(self):
        """One pass over the concepts' pictures, signed slopes of the guided prediction's error, one cut for all."""
        module = begun(pictures=2 * CHUNK)
        torch.manual_seed(11)
        masks = module.saliency()
        torch.manual_seed(11)
        total, parameters = 0, list(module.trainable().values())
        for start in (0, CHUNK):
            rows = range(start, start + CHUNK)
            t, noise = torch.randint(1000, (CHUNK,)), torch.randn(CHUNK, 4, 8, 8)
            x = module.backbone.process.noise(module._gallery.latents[list(rows)], noise, t)
            said = module.student(x, t, [module._forgotten.prompts[i] for i in rows])
            guided = 8.5 * said - 7.5 * module.student(x, t, [""] * CHUNK)
            loss = -(noise - guided).square().mean()
            total = total + torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        size = total.abs()
        marked = torch.cat([mask.flatten() for mask in masks.values()])
        assert marked.sum() == len(size) // 2
        assert size[marked].min() >= size[~marked].max()

    def test_what_is_not_salient_stays_bit_identical(self):
        module = fit(salun(lr=1e-2), 3)
        before = dict(TinyBackbone().named_parameters())
        for name, now in edit_of(module).items():
            assert torch.equal(now[~module.masks[name]], before[name][~module.masks[name]])
        moved = sum(int((now != before[name]).sum()) for name, now in edit_of(module).items())
        assert moved > 0.45 * sum(now.numel() for now in edit_of(module).values())


class TestPictures:
    def test_of_concepts_and_of_everything_else(self):
        module = begun(pictures=100)
        assert set(module._forgotten.concepts) == {"cat", "star"}
        assert len(module._gallery.latents) == 200
        asked = " ".join(module._remaining)
        assert "bicycle" in asked
        assert not {"cat", "star"} & set(asked.split())
        assert len(set(module._remaining)) == 100  # 79 things of COCO that are not cats, in other captions from then on

    def test_a_concept_has_one_though_there_are_more_concepts_than_pictures(self):
        module = begun(pictures=1)
        assert sorted(module._forgotten.concepts) == ["cat", "star"]

    def test_latents_are_of_the_concepts_asked_for(self):
        module = begun(pictures=6)
        x, t, batch = module.noisy_latents(Batch(["a {}"] * 3, ["star", "cat", "star"], ["", "dog", ""]))
        assert batch.concepts == ["star", "cat", "star"]
        assert x.shape == (3, 4, 8, 8)
        assert t.shape == (3,)

    def test_all_of_them_are_used(self):
        """Until 2026 the official code showed the same first ones in every step."""
        module, rows = begun(pictures=6), []
        noised = module._gallery.noised
        module._gallery.noised = lambda drawn: rows.extend(drawn) or noised(drawn)
        for _ in range(40):
            module.noisy_latents(Batch(["a {}"] * 2, ["star", "cat"], ["", "dog"]))
        assert set(rows) == set(range(6))

    def test_without_alpha_none_remain(self):
        assert len(begun(alpha=0.0)._gallery.latents) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": -1.0}, "needs alpha of at least 0, pictures and steps of at least 1; found -1.0, 4, 2"),
        ({"bank": TrajectoryBank()}, "needs no bank"),
        ({"share": 1.5}, "SalUn needs share above 0 and at most 1; found 1.5"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        salun(**arguments)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    module = fit(SalUn(concepts=[Concept("cigarette", "lollipop")], **numbers("salun", pictures=16, steps=10)), 40)
    assert recognised(module.original, ["cigarette"] * 4, steps=10) == 1
    assert recognised(module.backbone, ["cigarette"] * 4, steps=10) == 0
    assert recognised(module.backbone, KEPT, steps=10) == 1
