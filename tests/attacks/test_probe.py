"""What probes share: the models that they run on, and the choice of the best try."""

import torch
from under_attack import tiny_target, weights

from erasure_lightning.attacks.probe import (
    Attempts,
    Probe,
    best_tries,
    generate_by_ddim,
    shuffled_copy,
)
from erasure_lightning.diffusion.ddim import ddim, ddim_times


class Fingerprints(Probe):
    """Generates the plain images, and records the models that it runs on."""

    def prepare(self, target, case):
        self.models = []

        def generate(model, rows):
            self.models.append(model)
            conditioning = model.encode([case.prompt])
            return target.generate(conditioning, case.seeds[rows], model=model)

        def black(model, rows):
            return torch.zeros(len(case.seeds[rows]), 3, 16, 16)

        return Attempts(generate, {"black": black}, "the best words")


def test_it_runs_on_the_edited_model_the_original_and_a_shuffled_copy():
    target = tiny_target()
    probe = Fingerprints()
    (result,) = probe.run(target, 0)
    (case,) = target.cases(0)
    edited, original, shuffled = probe.models
    assert (edited, original) == (target.edited, target.original)
    name = next(iter(shuffled.denoiser_parameters()))
    assert not torch.equal(*(model.get_parameter(name) for model in (edited, shuffled)))
    for model, images in ((edited, result.images), (original, result.controls["original"])):
        plain = target.generate(model.encode([case.prompt]), case.seeds, model=model)
        assert torch.equal(images, plain)
    assert list(result.controls) == ["original", "shuffled", "black"]
    assert result.controls["black"].shape == result.images.shape
    assert result.prompt == "the best words"


def test_images_come_in_the_target_s_batches():
    target = tiny_target(image_batch_size=1, images=3)
    probe = Fingerprints()
    (result,) = probe.run(target, 0)
    assert len(probe.models) == 3 * 3
    (together,) = Fingerprints().run(tiny_target(images=3), 0)
    assert torch.allclose(result.images, together.images, atol=1e-4)
    assert not result.images.requires_grad


def test_the_best_try_of_each_image():
    target = tiny_target()
    (case,) = target.cases(0)
    cat, dog = (target.scorer.picture(f"a {name}") for name in ("cat", "dog"))
    tries = [torch.stack([dog, cat]), torch.stack([dog, dog]), torch.stack([cat, dog])]
    assert torch.equal(best_tries(target, case, tries), torch.stack([cat, cat]))


def test_without_a_prompt_there_is_no_guidance():
    target = tiny_target()
    model = target.edited
    x = model.noise([0, 1])
    times = ddim_times(model, 2)
    plain = ddim(model, model.encode(["a cat"]).expand(2), x, times, target.guidance)
    assert torch.equal(generate_by_ddim(target, model, "a cat", x, times), plain)
    unconditional = ddim(model, model.unconditional(2), x, times)
    assert torch.equal(generate_by_ddim(target, model, None, x, times), unconditional)


def test_a_shuffled_denoiser_has_the_same_entries_and_another_prediction(tiny):
    before = weights(tiny)
    shuffled = shuffled_copy(tiny, 0)
    after = weights(shuffled)
    assert all(
        torch.equal(before[n].flatten().sort().values, after[n].flatten().sort().values)
        for n in before
    )
    x, t, unconditional = torch.ones(1, 4, 8, 8), torch.tensor([500]), tiny.encode([""])
    assert not torch.allclose(
        shuffled.denoise(x, t, unconditional), tiny.denoise(x, t, unconditional), atol=1e-2
    )
    assert all(torch.equal(before[n], value) for n, value in weights(tiny).items())
    assert all(torch.equal(after[n], value) for n, value in weights(shuffled_copy(tiny, 0)).items())


def test_the_models_are_not_modified():
    target = tiny_target()
    before = [weights(model) for model in (target.edited, target.original)]
    Fingerprints().run(target, 0)
    for model, values in zip((target.edited, target.original), before, strict=True):
        assert all(torch.equal(values[n], value) for n, value in weights(model).items())
