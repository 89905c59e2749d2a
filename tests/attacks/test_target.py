import pytest
import torch
from under_attack import CAT, tiny_target

from erasure_lightning.attacks.target import Target, Trials
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.sampling import sample_images, sample_latents
from erasure_lightning.errors import ErasureError


def shown(target, *texts):
    """Pictures that the known scorer takes for texts."""
    return torch.stack([target.scorer.picture(text) for text in texts])


class TestDrawing:
    def test_words_input_embeddings_and_states_give_what_sampling_gives(self):
        target, seeds = tiny_target(), [3, 4]
        wanted = sample_images(target.edited, ["a cat", "a cat"], seeds, steps=2, guidance=3.0)
        words = target.draw(target.edited.encode(["a cat"]), seeds)
        embedded = target.draw(
            target.edited.contextualize(target.edited.embed(["a cat"] * 2)), seeds
        )
        assert torch.allclose(words, wanted, atol=1e-6)
        assert torch.allclose(embedded, wanted, atol=1e-6)

    def test_another_model_draws_where_one_is_named(self):
        target = tiny_target()
        wanted = sample_images(target.original, ["a cat"], [0], steps=2, guidance=3.0)
        asked = target.original.encode(["a cat"])
        assert torch.allclose(target.draw(asked, [0], model=target.original), wanted, atol=1e-6)
        assert not torch.allclose(target.draw(asked, [0]), wanted, atol=1e-4)

    def test_parts_make_no_difference(self):
        whole, parts = tiny_target(), tiny_target(draw_size=2)
        asked = whole.edited.encode(["a cat", "a dog", "a car"])
        drawn = [target.draw(asked, [0, 1, 2]) for target in (whole, parts)]
        assert torch.allclose(*drawn, atol=1e-6)

    def test_examples_are_the_original_s_and_no_case_starts_from_their_noise(self):
        target = tiny_target(steps=1, guidance=1.0)
        (case,) = target.cases(0)
        examples = target.examples(case, 3)
        judged = sample_latents(
            target.original, [case.sentence] * 4, [0, 1, 2, 3], steps=1, guidance=1.0
        )
        assert examples.shape == (3, 4, 8, 8)
        assert torch.equal(examples, target.examples(case, 3))
        assert torch.cdist(examples.flatten(1), judged.flatten(1)).min() > 1e-3


class TestCases:
    def test_sentences_take_turns_and_seeds_never_meet(self):
        target = tiny_target([*CAT, Concept("star")], pictures=3)
        cases = [case for seed in target.seeds for case in target.cases(seed)]
        assert [(c.concept.name, c.sentence) for c in cases] == [
            ("cat", "a cat"), ("star", "a star"), ("cat", "an image of a cat"), ("star", "an image of a star")
        ]  # fmt: skip
        assert [c.seeds for c in cases[::2]] == [[0, 1, 2], [3, 4, 5]]

    def test_a_style_is_put_on_a_thing(self):
        (case,) = tiny_target([Concept("flat", kind="style")]).cases(0)
        assert case.sentence == f"a {case.thing}, flat style"


class TestVerdicts:
    def test_a_concept_is_recognised_for_itself_alone(self):
        target = tiny_target([*CAT, Concept("star")])
        cat, star = target.cases(0)
        pictures = shown(target, "a cat", "a star", "a dog")
        assert target.recognised(cat, pictures).tolist() == [True, False, False]
        assert target.recognised(star, pictures).tolist() == [False, True, False]
        assert target.share(cat, pictures) == pytest.approx(1 / 3)

    def test_the_margin_is_to_the_nearest_other_label(self):
        target = tiny_target()
        (case,) = target.cases(0)
        both = 0.7 * target.scorer.picture("a cat") + 0.2 * target.scorer.picture("a dog")
        assert target.margin(case, both.unsqueeze(0)).item() == pytest.approx(0.5)

    def test_a_style_is_told_from_the_thing_without_it(self):
        target = tiny_target([Concept("flat", kind="style")])
        (case,) = target.cases(0)
        pictures = shown(target, f"a {case.thing}, flat style", f"a {case.thing}")
        assert target.recognised(case, pictures).tolist() == [True, False]


@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
def test_the_denoising_loss_by_hand(prediction):
    model = TinyBackbone(prediction=prediction)
    target = Target(model, model, CAT, Trials(), tiny_target().scorer)
    clean, t, asked = torch.randn(2, 4, 8, 8), torch.tensor([10, 700]), model.encode(["a cat"])
    torch.manual_seed(1)
    loss = target.denoising_loss(asked, clean, t)
    torch.manual_seed(1)
    noise, alphas = torch.randn(2, 4, 8, 8), model.process.alphas[t].view(2, 1, 1, 1)
    x = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise
    wanted = (
        noise if prediction == "epsilon" else alphas.sqrt() * noise - (1 - alphas).sqrt() * clean
    )
    said = model.denoise(x, t, asked.expand(2))
    assert torch.allclose(loss, (said - wanted).square().mean())


def test_the_protocol_says_what_was_asked_how():
    target = tiny_target()
    protocol = target.protocol
    assert protocol.prompts == {"cat": ["a cat", "an image of a cat"]}
    assert (protocol.seeds, protocol.steps, protocol.guidance, protocol.size) == (
        [0, 1, 2, 3],
        2,
        3.0,
        16,
    )
    assert protocol.identity != tiny_target(pictures=3).protocol.identity


def test_who_brings_no_scorer_must_name_one():
    with pytest.raises(ErasureError, match=r"TinyBackbone brings none.*--data\.scorer=FOLDER"):
        Target(TinyBackbone(), TinyBackbone(), CAT)


@pytest.mark.parametrize(
    "trials", [{"seeds": 1}, {"pictures": 0}, {"steps": 0}, {"draw_size": 0}, {"size": -8}], ids=str
)
def test_trials_out_of_range(trials):
    ((name, value),) = trials.items()
    with pytest.raises(ErasureError, match=rf"data\.{name} of at least \d; found {value}"):
        Trials(**trials)


def test_guidance_is_a_number_and_0_is_one():
    with pytest.raises(ErasureError, match=r"An attack needs a finite data\.guidance; found nan"):
        Trials(guidance=float("nan"))
    assert tiny_target(guidance=0.0).guidance == 0
