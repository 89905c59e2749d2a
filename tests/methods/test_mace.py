"""MACE: the contract, both closed forms, what adapters learn, and the erasure itself,
with controls.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from recognition import recognised, recognised_before
from shipped import numbers

from erasure_lightning.adapters.per_concept import ConceptAdapters
from erasure_lightning.backbones.conditioning import CONCEPT, END, PADDING
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinySD3, TinyXL
from erasure_lightning.concepts.concept import Concept, Phrase, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.mace import MACE
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.attention_masks import attention_inside, concept_mask
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.input_grams import input_gram
from erasure_lightning.training.prompt_states import shared_token_states
from erasure_lightning.training.time_sampling import importance_density
from erasure_lightning.training.trajectory_bank import TrajectoryBank

BATCH = PromptBatch(
    ["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", "heart"], [0, 1]
)
CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]


def images(steps=2, times="importance"):
    return GeneratedImages(images=1, steps=steps, guidance=4.0, times=times)


QUICK = numbers("mace", latents=images())


def mace(concepts=CONCEPTS, family=TinyBackbone, **arguments):
    module = MACE(concepts=concepts, backbone=family(), **(QUICK | arguments))
    module.configure_model()
    return module


def started(concepts=CONCEPTS, **arguments):
    """Behind stage 1, with adapters that learned something."""
    module = mace(concepts, **arguments)
    module.on_train_start()
    generator = torch.Generator().manual_seed(4)
    for up in module.adapters.up:
        up.data = torch.randn(up.shape, generator=generator)
    return module


def tokens(module):
    """The layers that read tokens."""
    return module.original.text_inputs()[0]


def key_weights(backbone):
    return next(iter(backbone.text_layers().values())).weight.double()


def masks_of(module, x, t, batch):
    return module.masks(noisy(module, x, t, batch), module.original.encode(batch.prompts))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"refine": False, "latents": images(times="uniform"), "rank": 2},
        {"preserve_scale": 0.0, "mask": 0.0},
        {"latents": TrajectoryBank(trajectories=2, steps=2)},
    ],
    ids=lambda arguments: ", ".join(arguments) or "default",
)
def test_contract(arguments):
    check_method(MACE, **(VARIANT if arguments else {}), **(QUICK | arguments))


class TestAlignment:
    def rows(self, template, concept, anchor):
        tiny, batch = TinyBackbone(), PromptBatch([template], [concept], [anchor])
        return (
            shared_token_states(tiny, batch, tiny.text_inputs()[0]),
            tiny.encode(batch.prompts).tokens[0],
            tiny.encode(batch.anchor_prompts).tokens[0],
        )

    def test_what_is_not_the_concept_meets_its_like(self):
        (k, a), concept_states, anchor_states = self.rows("a {} style", "cat", "dog")
        others = [0, 1, *range(3, 16)]
        assert torch.equal(k, concept_states[others])
        assert torch.equal(a, anchor_states[others])
        assert torch.equal(k[:2], a[:2])  # a causal encoder encodes what precedes the concept alike

    def test_sentences_of_two_lengths_meet_at_their_ends(self):
        (k, a), concept_states, anchor_states = self.rows("a {} style", "big cat", "dog")
        words = int(TinyBackbone().embed([Phrase("big cat", 0, 7)])[0].positions(CONCEPT).sum())
        assert words > 1
        assert torch.equal(k, concept_states[[0, 1, *range(2 + words, 16)]])
        assert torch.equal(a, anchor_states[[0, 1, *range(3, 16 - words + 1)]])

    def test_a_word_of_both_names_counts_as_shared(self):
        (k, a), concept_states, anchor_states = self.rows("a {}", "small cat", "small dog")
        others = [0, 1, 2, *range(4, 16)]
        assert torch.equal(k, concept_states[others])
        assert torch.equal(a, anchor_states[others])


class TestRefinement:
    def test_is_the_minimiser(self):
        module = mace(preserve_scale=0.2, ridge=0.5)
        module.on_train_start()
        weights, old = (
            key_weights(module.backbone).requires_grad_(True),
            key_weights(module.original),
        )
        loss = 0.5 * (weights - old).square().sum()
        loss = loss + ((weights - old) @ module._retained * (weights - old)).sum()
        for batch in module._concept_sentences:
            k, a = (
                rows.double()
                for rows in shared_token_states(module.original, batch, tokens(module))
            )
            loss = loss + (weights @ k.mT - old @ a.mT).square().sum()
        (gradient,) = torch.autograd.grad(loss, weights)
        assert gradient.abs().max() < 1e-3
        assert (weights - old).abs().max() > 1e-2

    def test_preservation_has_its_weight_once(self):
        one, ten = mace(preserve_scale=1.0), mace(preserve_scale=10.0)
        one.on_train_start(), ten.on_train_start()
        assert torch.allclose(10 * one._retained, ten._retained)

    def test_more_preservation_moves_retained_captions_less(self):
        def moved(preserve_scale):
            module = mace(preserve_scale=preserve_scale, ridge=0.01)
            module.on_train_start()
            k = module.original.encode(["a bird", "a car"]).tokens.double()
            return (
                ((key_weights(module.backbone) - key_weights(module.original)) @ k.mT).norm().item()
            )

        assert moved(10.0) < 0.5 * moved(0.0)

    def test_words_around_the_concept_are_mapped_as_around_the_anchor(self):
        module = mace(preserve_scale=0.0, ridge=0.01)
        module.on_train_start()
        k, a = (
            rows.double()
            for rows in shared_token_states(
                module.original, module._concept_sentences[0], tokens(module)
            )
        )
        now, old = key_weights(module.backbone), key_weights(module.original)
        assert (k @ now.mT - a @ old.mT).norm() < 0.7 * (k @ old.mT - a @ old.mT).norm()

    @pytest.mark.parametrize("family", [TinyXL, TinySD3, TinyFlux])
    def test_a_pooled_vector_is_mapped_as_the_anchor_s(self, family):
        module = mace(family=family, preserve_scale=0.0, ridge=0.01)
        module.on_train_start()
        (batch, _), (_, source) = module._concept_sentences, module.original.text_inputs()
        (_, edited) = module.backbone.text_inputs()
        k, a = shared_token_states(module.original, batch, source)
        ((now,), (old,)) = edited.weights(), source.weights()
        assert (k @ now.mT - a @ old.mT).norm() < 0.5 * (k @ old.mT - a @ old.mT).norm()
        without = mace(family=family, refine=False)
        without.on_train_start()
        assert torch.equal(without.backbone.text_inputs()[1].weights()[0], old)  # the control
        (name,) = source.layers
        assert f"{name}.weight" in module.editable()
        assert f"{name}.weight" not in without.editable()

    def test_what_callbacks_retain_is_added(self):
        module, gram = mace(preserve_scale=0.5), torch.eye(32, dtype=torch.float64)
        module.on_train_start()
        captions = module._retained
        held = SimpleNamespace(weight=2.0, of_states=False, gram=lambda module, source: gram)
        module.retention.append(held)
        module.on_train_start()
        assert torch.allclose(module._retained, captions + 2 * gram)


def test_images_are_of_the_seed_in_a_sentence_of_the_concept_s_kind():
    kinds = [Concept("cat", "dog"), Concept("Giotto", "Monet", kind="style")]
    module = mace(kinds, seed=1)
    models = module.models()
    assert models.seed != mace(kinds).models().seed
    texts = [prompt.text for prompt in models.sentences(4, 0).prompts]
    assert texts == ["a photo of a cat"] * 2 + ["a photo in the style of Giotto"] * 2


def test_the_loss_is_at_the_step_s_own_sentences():
    module = mace()
    module.on_train_start()
    assert module.noisy_batch(BATCH).sentences is BATCH


class TestSuppression:
    def test_only_pixels_in_the_mask_and_marked_positions_count(self):
        maps = {"layer": torch.rand(2, 3, 4, 5, requires_grad=True)}
        positions = torch.tensor([[False, True, False, True, False]] * 2)
        mask = torch.tensor([[True, False, False, True], [False, True, True, False]])
        value = attention_inside(maps, positions, {"layer": mask})
        inside = mask[:, None, :, None] & positions[:, None, None]
        by_hand = [maps["layer"][b][inside[b].expand(3, 4, 5)].norm() for b in range(2)]
        assert torch.allclose(value, torch.stack(by_hand))
        (gradient,) = torch.autograd.grad(value.sum(), maps["layer"])
        assert torch.equal(gradient != 0, inside.expand_as(gradient))

    def test_the_loss_by_hand(self):
        module = started()
        x, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])
        loss = module.erasure_loss(noisy(module, x, t, BATCH))
        prompts = module.original.encode(BATCH.prompts)
        masks, total = masks_of(module, x, t, BATCH), 0.0
        with (
            module.adapted(noisy(module, x, t, BATCH)),
            module.backbone.attention() as maps,
            torch.no_grad(),
        ):
            module.backbone.denoise(x, t, prompts)
        hidden = prompts.positions(CONCEPT, END, PADDING)
        for name, probabilities in maps.items():
            for row in range(2):
                total += probabilities[row][:, masks[name][row]][..., hidden[row]].norm() / 2
        assert torch.allclose(loss, total, rtol=1e-4)

    def test_rows_of_a_missing_text_encoder_do_not_count(self):
        module = started(family=partial(TinySD3, t5=False), mask=0.0)
        x, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])
        batch = noisy(module, x, t, BATCH)
        prompts = module.original.encode(BATCH.prompts)
        with module.adapted(batch), module.backbone.attention() as maps, torch.no_grad():
            module.backbone.denoise(x, t, prompts)
        where = prompts.positions(CONCEPT, END, PADDING)
        assert not where[:, prompts.segments[1]].any()
        assert all(a[..., prompts.segments[1]].max() > 1e-3 for a in maps.values())  # the control
        total = sum(a[row][..., where[row]].norm() / 2 for a in maps.values() for row in range(2))
        assert torch.allclose(module.erasure_loss(batch), total, rtol=1e-4)

    @pytest.mark.parametrize("family", [TinyBackbone, TinyFlux])
    def test_training_turns_attention_away_and_adapters_that_did_not_train_do_not(self, family):
        trained = quick_fit(mace(family=family, preserve_scale=0.0, lr=0.1), 20)
        idle = quick_fit(mace(family=family, preserve_scale=0.0, lr=1e-9), 2)
        x, t = torch.randn(2, 4, 8, 8), torch.tensor([300.0, 300.0])

        def attended(module):
            module.write_layers(module._refined)
            return module.erasure_loss(noisy(module, x, t, BATCH)).item()

        refined = idle.erasure_loss(noisy(idle, x, t, BATCH)).item()
        assert attended(idle) == pytest.approx(refined, rel=1e-3)
        assert attended(trained) < 0.8 * attended(idle)

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_a_mask_begins_at_its_share_of_the_range(self, share):
        module = mace(mask=share)
        x, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])
        prompts = module.original.encode(BATCH.prompts)
        with module.original.attention() as maps, torch.no_grad():
            module.original.denoise(x, t, prompts)
        expected = concept_mask(maps, prompts.positions(CONCEPT), share)
        masks = masks_of(module, x, t, BATCH)
        assert all(torch.equal(masks[name], expected[name]) for name in maps)
        shown = torch.cat([mask.flatten() for mask in masks.values()]).float().mean()
        assert (shown == 1) == (share == 0.0)  # the control

    def test_styles_have_no_mask(self):
        module = mace([Concept("cat", "dog"), Concept("star", "heart", kind="style")])
        x, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])
        masks = masks_of(module, x, t, BATCH).values()
        assert all(mask[1].all() for mask in masks)
        assert not all(mask[0].all() for mask in masks)

    def test_gradients_reach_the_adapters_of_the_batch_alone(self):
        module = started()
        cats = PromptBatch(["a {}"] * 2, ["cat"] * 2, ["dog"] * 2, [0, 0])
        module.erasure_loss(
            noisy(module, torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0]), cats)
        ).backward()
        reached = {name for name, p in module.named_parameters() if p.grad is not None}
        assert reached == {"adapters.down.0", "adapters.up.0"}


def test_times_of_importance_lie_where_things_have_their_shape():
    weights = importance_density(torch.arange(1000) / 1000)
    assert weights[200:400].sum() / weights.sum() > 0.85
    assert torch.allclose(importance_density(torch.arange(500) / 500), weights[::2])
    module = mace()
    module.on_train_start()
    batch = PromptBatch(["a {}"] * 200, ["cat"] * 200, ["dog"] * 200, [0] * 200)
    drawn = module.noisy_batch(batch)
    assert drawn.x.shape == (200, 4, 8, 8)
    assert ((drawn.t > 150) & (drawn.t < 450)).float().mean() > 0.95
    module.latents.times = "uniform"
    assert ((module.noisy_batch(batch).t > 450).float().mean()) > 0.3


class TestAdapters:
    def test_each_row_passes_those_of_its_own_concept(self):
        module = started()
        x, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])
        concept_states = module.original.encode(BATCH.prompts)
        with torch.no_grad():
            with module.adapted(noisy(module, x, t, BATCH)):
                both = module.backbone.denoise(x, t, concept_states)
            for row in range(2):
                alone = PromptBatch(*([field[row]] for field in BATCH))
                with module.adapted(noisy(module, x[[row]], t[[row]], alone)):
                    prediction = module.backbone.denoise(x[[row]], t[[row]], concept_states[[row]])
                assert torch.allclose(prediction[0], both[row], atol=1e-5)
            plain = module.backbone.denoise(x, t, concept_states)
        assert not torch.allclose(plain, both, atol=1e-3)

    def test_fused_weights_do_for_each_concept_what_its_adapter_did(self):
        layers = list(TinyBackbone().text_layers().values())
        adapters = ConceptAdapters(layers, 2, 1)
        for up in adapters.up:
            up.data.normal_()
        old, rows = (
            torch.cat([layer.weight for layer in layers]).double(),
            torch.randn(2, 6, 32).double(),
        )
        zeros = torch.zeros(32, 32).double()
        fused = adapters.fused(old, old, zeros, rows.mT @ rows, 1e-8)
        for concept, k in enumerate(rows):
            change = [
                up @ down
                for up, down in zip(
                    adapters.up[concept].split(adapters.widths), adapters.down[concept], strict=True
                )
            ]
            assert torch.allclose(
                fused @ k.mT, (old + torch.cat(change).double()) @ k.mT, atol=1e-4
            )
            assert not torch.allclose(old @ k.mT, fused @ k.mT, atol=1e-1)

    def test_fusing_one_concept_merges_its_adapter_on_its_span(self):
        module = started(CONCEPTS[:1], preserve_scale=0.0, ridge=2.0)
        gram = input_gram(module.original, module._concept_sentences[0].prompts, tokens(module))
        up, down = module.adapters.up[0], module.adapters.down[0]
        change = torch.cat(
            [b @ a for b, a in zip(up.split(module.adapters.widths), down, strict=True)]
        ).double()
        shrunk = change @ gram @ torch.linalg.inv(gram + 2.0 * torch.eye(32).double())
        assert torch.allclose(module.fused(), module._refined + shrunk, atol=1e-6)

    def test_adapters_that_learned_nothing_leave_stage_one_as_it_is(self):
        module = mace(preserve_scale=0.0)
        module.on_train_start()
        assert torch.equal(module.fused().float(), module._refined)

    def test_it_learns_the_same_in_any_order_of_concepts(self):
        here, there = started(), started(CONCEPTS[::-1])
        assert torch.allclose(here._refined, there._refined, atol=1e-6)
        for field in ("down", "up"):
            swapped = [p.data.clone() for p in getattr(here.adapters, field)][::-1]
            for parameter, value in zip(getattr(there.adapters, field), swapped, strict=True):
                parameter.data = value
        assert torch.allclose(here.fused(), there.fused(), atol=1e-6)


@pytest.mark.parametrize("family", [TinyBackbone, TinyFlux])
def test_a_checkpoint_is_an_edit_at_any_time(family, tmp_path):
    """Of the text layers, and of the pooled vector's where it has one."""
    quick_fit(mace(family=family, lr=1e-2), 2, total=4, save=tmp_path / "half.ckpt")
    saved, fused = (
        torch.load(tmp_path / "half.ckpt", weights_only=True),
        quick_fit(mace(family=family, lr=1e-2), 2).editable(),
    )
    fresh = mace(family=family)
    refined = {name: value.clone() for name, value in fresh.editable().items()}
    fresh.on_load_checkpoint(saved)
    fresh.load_state_dict(saved["state_dict"], strict=False)
    assert fresh.adapters.up[0].abs().sum() > 0
    assert all(not torch.equal(value, refined[name]) for name, value in fresh.editable().items())
    assert len(saved["state_dict"]) == len(fresh.editable())
    assert fresh.editable().keys() == fused.keys()


def test_a_hundred_concepts():
    letters = "bcdefghijk"
    many = [Concept(a + b, "dog") for a in letters for b in letters]
    module = quick_fit(mace(many, latents=images(steps=1), preserve_scale=0.0), 2)
    assert len(module.trainable()) == 200
    assert all(value.isfinite().all() for value in module.editable().values())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rank": 0}, "rank of at least 1; found 0"),
        ({"mask": 2.0}, "mask of at least 0 and at most 1; found 2.0"),
        ({"ridge": 0.0}, "ridge above 0; found 0.0"),
        ({"preserve_scale": -1.0}, "preserve_scale of at least 0; found -1.0"),
    ],
)
def test_numbers_out_of_range(wrong, words):
    with pytest.raises(ErasureError, match=f"MACE needs {words}"):
        mace(**wrong)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    retained = ["fox", "grapes", "guitar", "snowman"]
    shown = GeneratedImages(images=4, steps=10, guidance=4, times="importance")
    module = quick_fit(
        MACE(
            backbone="emoji-world",
            concepts=[Concept("cigarette", "lollipop")],
            **numbers("mace", latents=shown),
        ),
        15,
    )
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, retained) == recognised_before(module, retained) == 1
