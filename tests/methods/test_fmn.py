"""FMN: the contract, the norm by hand, what it reads, and textual inversion."""

import pytest
import torch
from contracts import VARIANT
from noisy import noisy

from erasure_lightning.backbones.conditioning import CONCEPT, END, PADDING, START, TEMPLATE
from erasure_lightning.backbones.tiny import TinyBackbone, TinySD3
from erasure_lightning.concepts.concept import Concept, PromptBatch, fill_template
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.fmn import FMN
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.latent_sources import PureNoise

CONCEPTS = [Concept("cat"), Concept("star")]
BATCH = PromptBatch(["a photo of a {}", "the {} in a house"], ["cat", "star"], ["", ""], [0, 1])
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])


def fmn(**arguments):
    module = FMN(
        concepts=CONCEPTS,
        **(
            {"backbone": TinyBackbone(), "lr": 1e-3, "inversion_steps": 0, "latents": PureNoise()}
            | arguments
        ),
    )
    module.configure_model()
    return module


def images():
    return GeneratedImages(images=2, steps=2)


@pytest.mark.parametrize(
    "arguments",
    [{"latents": PureNoise(), "inversion_steps": 0}, {"latents": images(), "inversion_steps": 2}],
    ids=["noise", "inversion"],
)
def test_contract(arguments):
    inverted = arguments["inversion_steps"] > 0
    check_method(FMN, **(VARIANT if inverted else {}), **({"lr": 1e-3, "train": "x"} | arguments))


@pytest.mark.parametrize(
    ("reach", "roles"),
    [("words", [CONCEPT]), ("end", [CONCEPT, END]), ("padding", [CONCEPT, END, PADDING])],
)
def test_the_norm_by_hand(reach, roles):
    module = fmn(reach=reach)
    prompts = module.original.encode(BATCH.prompts)
    with module.backbone.attention() as maps:
        module.backbone.denoise(X, T, prompts)
    norms = []
    for row in range(2):
        where = torch.isin(prompts.roles[row], torch.tensor(roles))
        each = [a[row][:, :, where].flatten() for a in maps.values()]
        norms.append(torch.cat(each).norm())  # the official line
    assert len(maps) > 1
    loss = module.erasure_loss(noisy(module, X, T, BATCH))
    assert torch.allclose(loss, torch.stack(norms).mean())


def test_rows_of_a_missing_text_encoder_do_not_count():
    module = fmn(backbone=TinySD3(t5=False))
    prompts = module.original.encode(BATCH.prompts)
    with module.backbone.attention() as maps:
        module.backbone.denoise(X, T, prompts)
    missing = prompts.segments[1]
    where = prompts.positions(CONCEPT, END, PADDING)
    assert not where[:, missing].any()
    assert all(a[..., missing].max() > 1e-3 for a in maps.values())  # the control
    norms = [
        torch.cat([a[row][:, :, where[row]].flatten() for a in maps.values()]).norm()
        for row in range(2)
    ]
    loss = module.erasure_loss(noisy(module, X, T, BATCH))
    assert torch.allclose(loss, torch.stack(norms).mean())


def test_attention_to_the_words_falls_and_that_to_others_rises():
    module = fmn(train="x", lr=3e-3)

    def attention(model, *roles):
        """Mean probability of a position with these roles."""
        prompts = model.encode(BATCH.prompts)
        where = prompts.positions(*roles)
        with model.attention() as maps, torch.no_grad():
            model.denoise(X, T, prompts)
        means = [
            (a * where[:, None, None]).sum() / (a[..., 0].numel() * where.sum() / 2)
            for a in maps.values()
        ]
        return torch.stack(means).mean().item()

    quick_fit(module, 20)
    before, after = (
        [attention(model, *roles) for roles in ((CONCEPT, END, PADDING), (START, TEMPLATE))]
        for model in (module.original, module.backbone)
    )
    assert after[0] < 0.8 * before[0]
    assert after[1] > before[1]  # the control: they sum to 1


class TestInversion:
    def test_only_the_words_are_replaced(self):
        module = fmn()
        plain = module.original.embed(BATCH.prompts)[0]
        learned = torch.zeros(2, 1, plain.embeddings.shape[2])
        learned[1] = 1
        (changed,) = module.with_words(noisy(module, X, T, BATCH), (learned,))
        where = plain.roles == CONCEPT
        assert torch.equal(changed.embeddings[~where], plain.embeddings[~where])
        for row in range(2):
            assert (changed.embeddings[row, where[row]] == row).all()

    def test_it_denoises_the_images_better_than_the_words(self):
        def error(module, prompts):
            batches = [module.latents.at([i % 4], module.models()) for i in range(20)]
            return sum(
                (module.original.denoise(b.x, b.t, prompts(b)) - b.target).square().mean().item()
                for b in batches
            )

        module = fmn(latents=images(), inversion_steps=30, inversion_lr=0.1, inversion_batch=2)
        module.on_train_start()
        with torch.no_grad():
            torch.manual_seed(5)
            inverted = error(module, module.concept_prompts)
            module.inverted = ()
            torch.manual_seed(5)
            assert inverted < error(module, module.concept_prompts)

    def test_each_step_is_on_other_sentences_as_many_for_each_concept(self, monkeypatch):
        module = fmn(latents=images(), inversion_steps=2, inversion_batch=3)
        drawn = []
        sentences = module.sentences

        def recorded(count, number, salt):
            drawn.append((count, number))
            return sentences(count, number, salt)

        module.latents.prepare(module.models())
        monkeypatch.setattr(module, "sentences", recorded)
        module.inversion()
        assert drawn == [(6, 0), (6, 1)]

    def test_the_first_step_of_adam_is_as_long_as_the_rate(self):
        module = fmn(latents=images(), inversion_steps=1, inversion_lr=0.02)
        module.latents.prepare(module.models())
        (learned,) = module.inversion()
        (plain,) = module.original.embed([fill_template("{}", c.name) for c in CONCEPTS])
        change = (learned[:, 0] - plain.embeddings[plain.positions(CONCEPT)]).abs()
        assert torch.allclose(change, torch.full_like(change, 0.02), rtol=1e-2)

    def test_its_draws_are_the_seed_s(self):
        def draws(seed):
            module = fmn(seed=seed, inversion_steps=1)
            module.inversion = lambda: (torch.rand(4),)
            module.on_train_start()
            return module.inverted[0].tolist()

        assert draws(0) == draws(0) != draws(1)

    def test_it_needs_images(self):
        with pytest.raises(ErasureError, match="needs images as latents; found PureNoise"):
            quick_fit(fmn(inversion_steps=1), 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"inversion_steps": -1}, "FMN needs inversion_steps of at least 0; found -1"),
        ({"inversion_lr": 0.0}, "FMN needs inversion_lr above 0; found 0.0"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        fmn(**arguments)
