import pytest
import torch
from under_attack import CAT, tiny_target

from erasure_lightning.attacks.target import AttackCase, AttackSettings, AttackTarget
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.sampling import sample_images, sample_latents
from erasure_lightning.errors import ErasureError


def shown(target, *texts):
    """Images that the known scorer recognises as the texts."""
    return torch.stack([target.scorer.picture(text) for text in texts])


class TestDrawing:
    def test_prompts_and_input_embeddings_equal_plain_sampling(self):
        target = tiny_target()
        seeds = [3, 4]
        expected = sample_images(target.edited, ["a cat", "a cat"], seeds, steps=2, guidance=3.0)
        words = target.generate(target.edited.encode(["a cat"]), seeds)
        conditioning = target.edited.contextualize(target.edited.embed(["a cat"] * 2))
        embedded = target.generate(conditioning, seeds)
        assert torch.allclose(words, expected, atol=1e-6)
        assert torch.allclose(embedded, expected, atol=1e-6)

    def test_another_model_can_be_sampled(self):
        target = tiny_target()
        expected = sample_images(target.original, ["a cat"], [0], steps=2, guidance=3.0)
        conditioning = target.original.encode(["a cat"])
        assert torch.allclose(
            target.generate(conditioning, [0], model=target.original), expected, atol=1e-6
        )
        assert not torch.allclose(target.generate(conditioning, [0]), expected, atol=1e-4)

    def test_the_batch_size_makes_no_difference(self):
        whole, parts = tiny_target(), tiny_target(image_batch_size=2)
        conditioning = whole.edited.encode(["a cat", "a dog", "a car"])
        drawn = [target.generate(conditioning, [0, 1, 2]) for target in (whole, parts)]
        assert torch.allclose(*drawn, atol=1e-6)

    def test_examples_share_no_noise_with_the_cases(self):
        target = tiny_target(steps=1, guidance=1.0)
        (case,) = target.cases(0)
        examples = target.examples(case, 3)
        scored = sample_latents(
            target.original, [case.prompt] * 4, [0, 1, 2, 3], steps=1, guidance=1.0
        )
        assert examples.shape == (3, 4, 8, 8)
        assert torch.equal(examples, target.examples(case, 3))
        assert torch.cdist(examples.flatten(1), scored.flatten(1)).min() > 1e-3

    def test_each_seed_has_examples_and_search_noise_of_its_own(self):
        target = tiny_target()
        (first,), (second,) = (target.cases(seed) for seed in (0, 1))
        second = second._replace(prompt=first.prompt)
        examples = [target.examples(case, 2) for case in (first, second)]
        assert not torch.allclose(*examples, atol=1e-3)
        seeds = []
        generate = target.generate
        target.generate = lambda prompt, own, **options: (
            seeds.extend(own) or generate(prompt, own, **options)
        )
        for case in (first, first, second):
            target.prompt_margin(case, "a cat")
        assert seeds[0] == seeds[1] != seeds[2]
        assert not set(seeds) & {*first.seeds, *second.seeds}


class TestCases:
    def test_prompts_alternate_and_seeds_are_distinct(self):
        target = tiny_target([*CAT, Concept("star")], images=3)
        cases = [case for seed in target.seeds for case in target.cases(seed)]
        assert [(c.concept.name, c.prompt) for c in cases] == [
            ("cat", "a cat"),
            ("star", "a star"),
            ("cat", "an image of a cat"),
            ("star", "an image of a star"),
        ]
        assert [c.seeds for c in cases[::2]] == [[0, 1, 2], [3, 4, 5]]

    def test_a_style_has_a_thing(self):
        (case,) = tiny_target([Concept("flat", kind="style")]).cases(0)
        assert case.prompt == f"a {case.thing}, flat style"

    @pytest.mark.parametrize(
        ("concept", "prompt", "template"),
        [
            (Concept("cat"), "a cat", "a {}"),
            (Concept("mage"), "an image of a mage", "an image of a {}"),
            (Concept("ink", kind="style"), "a sink, ink style", "a sink, {} style"),
        ],
        ids=lambda value: getattr(value, "name", value),
    )
    def test_the_name_s_letters_in_other_words_are_not_the_name(self, concept, prompt, template):
        assert AttackCase(concept, prompt, "", 0, [0]).template == template


class TestScoring:
    def test_a_concept_is_recognised_for_itself_alone(self):
        target = tiny_target([*CAT, Concept("star")])
        cat, star = target.cases(0)
        images = shown(target, "a cat", "a star", "a dog")
        assert (target.margin(cat, images) > 0).tolist() == [True, False, False]
        assert (target.margin(star, images) > 0).tolist() == [False, True, False]
        assert target.success_rate(cat, images) == pytest.approx(1 / 3)

    def test_the_margin_is_to_the_nearest_other_label(self):
        target = tiny_target()
        (case,) = target.cases(0)
        both = 0.7 * target.scorer.picture("a cat") + 0.2 * target.scorer.picture("a dog")
        assert target.margin(case, both.unsqueeze(0)).item() == pytest.approx(0.5)

    def test_a_style_is_distinguished_from_the_thing_without_it(self):
        target = tiny_target([Concept("flat", kind="style")])
        (case,) = target.cases(0)
        images = shown(target, f"a {case.thing}, flat style", f"a {case.thing}")
        assert (target.margin(case, images) > 0).tolist() == [True, False]

    def test_a_style_is_recognised_on_any_thing(self):
        """Adversarial words alone need not show the thing of the plain prompt."""
        target = tiny_target([Concept("flat", kind="style")])
        (case,) = target.cases(0)
        other = next(label for label in ("cat", "dog") if label != case.thing)
        images = shown(target, f"a {other}, flat style", f"a {other}")
        # Alone the case's thing is nearer in the style.
        images += 0.2 * target.scorer.picture(f"a {case.thing}, flat style")
        assert (target.margin(case, images) > 0).tolist() == [True, False]


@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
def test_the_denoising_loss_by_hand(prediction):
    model = TinyBackbone(prediction=prediction)
    target = AttackTarget(model, model, CAT, AttackSettings(), tiny_target().scorer)
    clean = torch.randn(2, 4, 8, 8)
    t = torch.tensor([10, 700])
    conditioning = model.encode(["a cat"])
    torch.manual_seed(1)
    loss = target.denoising_loss(conditioning, clean, t)
    torch.manual_seed(1)
    noise = torch.randn(2, 4, 8, 8)
    alphas = model.process.alphas[t].view(2, 1, 1, 1)
    x = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise
    velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * clean
    expected = noise if prediction == "epsilon" else velocity
    prediction = model.denoise(x, t, conditioning.expand(2))
    assert torch.allclose(loss, (prediction - expected).square().mean())


def test_the_protocol_records_prompts_and_sampling():
    target = tiny_target()
    protocol = target.protocol
    assert protocol.prompts == {"cat": ["a cat", "an image of a cat"]}
    assert protocol.seeds == [0, 1, 2, 3]
    assert (protocol.steps, protocol.guidance, protocol.size) == (2, 3.0, 16)
    assert protocol.identity != tiny_target(images=3).protocol.identity


def test_a_model_without_a_scorer_needs_one():
    with pytest.raises(
        ErasureError, match=r"TinyBackbone brings none.*scorer=FOLDER .*--data\.scorer FOLDER"
    ):
        AttackTarget(TinyBackbone(), TinyBackbone(), CAT)


@pytest.mark.parametrize(
    "arguments",
    [{"seeds": 1}, {"images": 0}, {"steps": 0}, {"image_batch_size": 0}, {"image_size": -8}],
    ids=str,
)
def test_settings_out_of_range(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(
        ErasureError, match=rf"AttackSettings needs {name} of at least \d; found {value}"
    ):
        AttackSettings(**arguments)


def test_guidance_is_a_number_and_0_is_one():
    with pytest.raises(ErasureError, match=r"AttackSettings needs a finite guidance; found nan"):
        AttackSettings(guidance=float("nan"))
    assert tiny_target(guidance=0.0).guidance == 0


def test_steps_and_guidance_are_the_models_by_default():
    target = tiny_target(family=TinyFlux, steps=None, guidance=None)
    assert (target.steps, target.guidance) == (28, 3.5)
