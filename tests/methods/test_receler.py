"""Receler: the contract, its loss and its attack, the mask, resuming, a pipeline, and
the erasure itself.
"""

from functools import partial

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from recognition import KEPT, recognised, recognised_before
from shipped import numbers
from torch import nn

from erasure_lightning.adapters.base import adapters_of
from erasure_lightning.adapters.eraser import eraser_outputs, mean_square_outside
from erasure_lightning.backbones.conditioning import CONCEPT
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinyPixArt, TinySD3
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.edits.applied import apply_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.receler import Receler
from erasure_lightning.testing import check_method, edit_of, quick_fit
from erasure_lightning.training.attention_masks import concept_mask
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
BATCH = PromptBatch(
    ["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", "heart"], [0, 1]
)
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])

#: What the shipped config gives.
ARGUMENTS = numbers("receler")


def receler(family=TinyBackbone, **arguments):
    module = Receler(concepts=CONCEPTS, backbone=family(), **(ARGUMENTS | {"rank": 8} | arguments))
    module.configure_model()
    for parameter in module.trainable().values():  # so that student and original differ
        nn.init.normal_(parameter, std=0.1)
    return module


def predict(model, prompts):
    return model.denoise(X, T, model.encode(prompts))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {
            "latents": TrajectoryBank(trajectories=2, steps=3, student=True, refresh=2),
            "attack_steps": 3,
            "rows": 3,
        },
        {"attack_steps": 0, "mask_weight": 0.0, "rank": 4},
    ],
    ids=["default", "student", "no attack"],
)
def test_contract(arguments):
    check_method(
        Receler, **(VARIANT if arguments else {}), **(ARGUMENTS | {"warmup": 1} | arguments)
    )


def test_without_attack_and_mask_it_is_the_loss_of_esd():
    module = receler(attack_steps=0, mask_weight=0.0)
    uncond, called = predict(module.original, ["", ""]), predict(module.original, BATCH.prompts)
    by_hand = (predict(module.backbone, BATCH.prompts) - (2 * uncond - called)).square().mean()
    assert torch.allclose(module.erasure_loss(noisy(module, X, T, BATCH)), by_hand, atol=1e-6)


def test_the_loss_by_hand():
    module = receler(attack_steps=0, eta=0.5, mask_weight=3.0, threshold=0.5)
    uncond, called = predict(module.original, ["", ""]), predict(module.original, BATCH.prompts)
    prompts = module.original.encode(BATCH.prompts)
    with module.original.attention() as maps:
        module.original.denoise(X, T, prompts)
    with eraser_outputs(module.backbone.denoiser) as added:
        prediction = predict(module.backbone, BATCH.prompts)
    error = prediction - (uncond - 0.5 * (called - uncond))
    # Of the layers of 16 pixels: those of a quarter of the side, 4, do not exist.
    masks = concept_mask(maps, prompts.positions(CONCEPT), 0.5, pixels=16)
    by_hand = error.square().mean() + 3 * mean_square_outside(added, masks)
    batch = noisy(module, X, T, BATCH)
    assert torch.allclose(module.erasure_loss(batch), by_hand, rtol=1e-5)
    other = concept_mask(maps, prompts.positions(CONCEPT), 0.5, pixels=64)
    assert mean_square_outside(added, masks) != mean_square_outside(added, other)  # the control


def test_no_row_is_put_in_the_place_of_a_missing_text_encoder():
    module = receler(partial(TinySD3, t5=False), attack_steps=1)
    prompts = module.backbone.encode(BATCH.prompts)
    attacked = module.attacked(prompts, noisy(module, X, T, BATCH))
    first, missing = prompts.segments
    assert not attacked.tokens[:, missing].any()
    assert torch.equal(attacked.roles[:, missing], prompts.roles[:, missing])
    assert not torch.equal(attacked.tokens[:, first], prompts.tokens[:, first])


def test_rows_leave_the_channels_that_clip_s_states_lack():
    module = receler(TinySD3, attack_steps=1)
    prompts = module.backbone.encode(BATCH.prompts)
    attacked = module.attacked(prompts, noisy(module, X, T, BATCH))
    lacking = prompts.tokens == 0
    assert lacking[:, prompts.segments[0]].any()
    assert not attacked.tokens[lacking].any()


def test_erasers_and_rows_have_their_numbers():
    module = receler(rank=3, rows=5, attack_lr=0.3, attack_decay=0.02)
    downs = [p for name, p in module.trainable().items() if name.endswith("maps.0.weight")]
    assert {len(down) for down in downs} == {3}
    rows = module.rows_like(TinyBackbone().encode(["a"]).tokens)
    assert rows.of(["cat", "star"]).shape[:2] == (2, 5)
    settings = rows._adam.defaults
    assert (settings["lr"], settings["weight_decay"]) == (0.3, 0.02)


def test_rows_begin_at_random_of_the_seed():
    first, same, other = (
        receler(seed=seed).rows_like(TinyBackbone().encode(["a"]).tokens).of(["cat"])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.allclose(first, other, atol=1e-2)


def test_a_module_that_went_on_resumes_with_the_rows_of_its_checkpoint(tmp_path):
    """As where a fit was interrupted in a notebook."""

    def make():
        arguments = ARGUMENTS | {"rank": 8, "attack_steps": 2}
        return Receler(concepts=CONCEPTS, backbone=TinyBackbone(), **arguments)

    module = quick_fit(make(), 1, total=3, save=tmp_path / "half.ckpt")
    quick_fit(module, 3)
    module, other = (quick_fit(m, 3, resume=tmp_path / "half.ckpt") for m in (module, make()))
    rows, others = (m.adversarial_rows.of(["cat", "star"]) for m in (module, other))
    assert torch.equal(rows, others)
    edit, expected = edit_of(module), edit_of(other)
    assert all(torch.equal(edit[name], expected[name]) for name in expected)


class TestAttack:
    def states(self, module):
        prompts = module.backbone.encode(BATCH.prompts)
        return prompts, (prompts.from_end() == 0).int().argmax(dim=1)

    def test_rows_stand_where_the_sentences_end_and_nowhere_else(self):
        module = receler(rows=3)
        states, ends = self.states(module)
        changed = (module.attacked(states, noisy(module, X, T, BATCH)).tokens != states.tokens).any(
            dim=2
        )
        for row, end in zip(changed, ends.tolist(), strict=True):
            assert row.nonzero().flatten().tolist() == [end, end + 1, end + 2]

    def test_the_row_is_as_long_as_the_encoder_lets_it(self):
        module = receler(rows=16)
        states, ends = self.states(module)
        changed = (module.attacked(states, noisy(module, X, T, BATCH)).tokens != states.tokens).any(
            dim=2
        )
        assert changed.sum(dim=1).tolist() == (16 - ends).tolist()

    def test_the_denoiser_really_reads_them(self):
        """The official code's bug: there they are written into a copy."""
        module = receler()
        states, _ = self.states(module)
        plain = module.backbone.denoise(X, T, states)
        assert not torch.allclose(
            module.backbone.denoise(X, T, module.attacked(states, noisy(module, X, T, BATCH))),
            plain,
            atol=1e-3,
        )

    def test_every_row_is_read_where_padding_is_not(self):
        module = receler(TinyPixArt, rows=3)
        states, _ = self.states(module)
        attacked = module.attacked(states, noisy(module, X, T, BATCH))
        x = torch.randn(2, *module.backbone.latent_shape())
        prediction = module.backbone.denoise(x, T, attacked)
        rows = [*module.adversarial_rows._rows.values()]
        for gradient in torch.autograd.grad(prediction.square().sum(), rows):
            assert (gradient.abs().amax(dim=1) > 0).all()

    def test_its_steps_bring_the_concept_back(self):
        module = receler(attack_decay=0.0)
        states, _ = self.states(module)
        called = predict(module.original, BATCH.prompts).detach()
        gaps = []
        for _ in range(50):
            prediction = module.backbone.denoise(
                X, T, module.attacked(states, noisy(module, X, T, BATCH))
            )
            gaps.append((prediction - called).square().mean())
            module.adversarial_rows.step(gaps[-1])
        assert gaps[-1] < 0.9 * gaps[0]

    def test_rows_of_a_concept_outside_the_batch_do_not_change(self):
        module = receler()
        before = (
            module.rows_like(TinyBackbone().encode(["a"]).tokens)
            .of(["cat", "star"])
            .detach()
            .clone()
        )
        cats = PromptBatch(["a {}", "the {}"], ["cat", "cat"], ["dog", "dog"], [0, 0])
        module.erasure_loss(noisy(module, X, T, cats))
        after = module.adversarial_rows.of(["cat", "star"])
        assert not torch.equal(after[0], before[0])
        assert torch.equal(after[1], before[1])

    def test_only_the_erasers_and_the_rows_get_gradients(self):
        module = receler()
        module.erasure_loss(noisy(module, X, T, BATCH)).backward()
        assert {n for n, p in module.backbone.named_parameters() if p.grad is not None} == set(
            module.editable()
        )


class TestMask:
    def test_nothing_outside_costs_nothing(self):
        added = {"a": torch.randn(2, 4, 3), "b": torch.randn(2, 16, 3)}
        everywhere = {
            name: torch.ones(change.shape[:2], dtype=torch.bool) for name, change in added.items()
        }
        assert mean_square_outside(added, everywhere) == 0

    def test_everything_outside_costs_its_mean_square(self):
        added = {"a": torch.randn(2, 4, 3), "b": torch.randn(2, 16, 3)}
        nowhere = {
            name: torch.zeros(change.shape[:2], dtype=torch.bool) for name, change in added.items()
        }
        by_hand = (added["a"].square().mean() + added["b"].square().mean()) / 2
        assert torch.allclose(mean_square_outside(added, nowhere), by_hand)

    def test_it_is_part_of_the_loss(self):
        torch.manual_seed(0)
        without = receler(attack_steps=0, mask_weight=0.0)
        torch.manual_seed(0)
        held = receler(attack_steps=0, mask_weight=1.0, threshold=0.5)
        assert held.erasure_loss(noisy(held, X, T, BATCH)) > without.erasure_loss(
            noisy(without, X, T, BATCH)
        )


def test_erasers_add_nothing_before_they_are_trained():
    module = Receler(concepts=CONCEPTS, backbone=TinyBackbone())
    module.configure_model()
    assert torch.equal(
        predict(module.backbone, BATCH.prompts), predict(module.original, BATCH.prompts)
    )


@pytest.mark.parametrize("family", [TinySD3, TinyFlux])
def test_erasers_after_joint_attention_change_pixels_alone(family):
    module = receler(family)
    calls = {}

    def record(name, layer, args, kwargs, output):
        calls[name] = layer.forward(*args, **kwargs), output  # without and with the eraser

    layers = module.backbone.adaptable("text attention")
    assert all(isinstance(layer.add_k_proj, nn.Linear) for layer in layers.values())
    for name, layer in layers.items():
        layer.register_forward_hook(partial(record, name), with_kwargs=True)
    x = torch.linspace(-2, 2, 512).view(2, *module.backbone.latent_shape())
    with eraser_outputs(module.backbone.denoiser) as added:
        module.backbone.denoise(x, T, module.backbone.encode(BATCH.prompts))
    assert {f"denoiser.{name}" for name in added} == calls.keys() == layers.keys()
    for name, ((pixels, text), (with_eraser, text_after)) in calls.items():
        change = added[name.removeprefix("denoiser.")]
        assert torch.equal(with_eraser, pixels + change)
        assert change.abs().max() > 1e-3
        assert torch.equal(text, text_after)


@torch.no_grad()
def test_skip_layer_guidance_leaves_out_the_erasers_of_the_blocks_that_it_skips():
    module = receler(TinySD3)
    x = torch.linspace(-2, 2, 512).view(2, *module.backbone.latent_shape())

    def predicted(model, *skipped):
        prompts = model.encode(BATCH.prompts)
        return model.denoiser(
            x, prompts.tokens, prompts.pooled, T, skip_layers=list(skipped), return_dict=False
        )[0]

    assert len(module.backbone.denoiser.transformer_blocks) == 2
    assert torch.equal(*(predicted(m, 0, 1) for m in (module.backbone, module.original)))
    for concepts in ((), (0,), (1,)):
        change = predicted(module.backbone, *concepts) - predicted(module.original, *concepts)
        assert change.abs().max() > 1e-3


def test_erasers_keep_what_an_ip_adapter_adds():
    eraser = adapters_of(receler(TinyFlux).backbone.denoiser)[0]
    pixels, text, image = torch.randn(3, 2, 4, 32)
    with_eraser, *others = eraser.change(nn.Identity(), (), {}, (pixels, text, image))
    assert torch.equal(with_eraser, eraser(pixels, pixels))
    assert not torch.equal(with_eraser, pixels)
    assert others[0] is text
    assert others[1] is image


def test_what_erasers_add_is_heard():
    module = receler()
    with eraser_outputs(module.backbone.denoiser) as added:
        predict(module.backbone, BATCH.prompts)
    assert set(added) == {
        f"{name.removeprefix('denoiser.')}" for name in module.backbone.adaptable("text attention")
    }
    assert {change.shape[1] for change in added.values()} == {64, 16}


@pytest.mark.parametrize("family", [TinyBackbone, TinySD3, TinyFlux])
def test_a_pipeline_predicts_what_the_module_predicts(tmp_path, family):
    module, tiny = receler(family), family()
    module.save_edit(tmp_path / "edit.safetensors")
    before = predict(tiny, BATCH.prompts)
    apply_edit(tmp_path, tiny.to_pipeline())
    assert torch.allclose(
        predict(tiny, BATCH.prompts), predict(module.backbone, BATCH.prompts), atol=1e-6
    )
    assert not torch.allclose(predict(tiny, BATCH.prompts), before, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"attack_steps": -1}, "attack_steps of at least 0; found -1"),
        ({"attack_lr": -0.1}, "attack_lr above 0; found -0.1"),
        ({"attack_decay": -0.1}, "attack_decay of at least 0; found -0.1"),
        ({"mask_weight": -1.0}, "mask_weight of at least 0; found -1.0"),
        ({"threshold": 2.0}, "threshold of at least 0 and at most 1; found 2.0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, words):
    with pytest.raises(ErasureError, match=f"Receler needs {words}"):
        Receler(backbone="emoji-world", concepts=CONCEPTS, **arguments)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    arguments = numbers("receler", lr=2e-3, latents=TrajectoryBank(4, 10))
    module = quick_fit(
        Receler(backbone="emoji-world", concepts=[Concept("cigarette")], **arguments), 15
    )
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) == recognised_before(module, KEPT) == 1
