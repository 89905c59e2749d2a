"""EAP: the contract, the loss by hand, and an adversary that finds what is harmed."""

import pytest
import torch
from contracts import VARIANT
from noisy import noisy

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.eap import EAP
from erasure_lightning.testing import check_method
from erasure_lightning.training.latent_sources import pure_noise
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat"), Concept("star")]
BATCH = PromptBatch(["a {}", "the {}"], ["cat", "star"], ["", ""], [0, 1])
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])
ARGUMENTS = {"closest": 60, "centres": 20, "lr": 1e-3}


def eap(moved=0.05, **arguments):
    module = EAP(concepts=CONCEPTS, backbone=TinyBackbone(), **(ARGUMENTS | arguments))
    module.configure_model()
    module.on_train_start()
    for parameter in module.editable().values():
        parameter.data.add_(moved * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(
    "arguments",
    [{}, {"train": "x-strict", "adversary_lr": 0.0, "latents": TrajectoryBank(2, 3)}],
    ids=["default", "random words"],
)
def test_contract(arguments, tmp_path):
    few = tmp_path / "words.txt"  # the world has some hundreds
    few.write_text("tree\ncar\nboat\nbird\nfish\nhouse\n")
    arguments = {"vocabulary": str(few)} | arguments
    check_method(EAP, **(VARIANT if "train" in arguments else {}), **(ARGUMENTS | arguments))


def test_the_loss_by_hand():
    """In clean latents an epsilon model's errors weigh ``(1 - a) / a``."""
    module = eap(adversary_lr=0.0, centres=1, closest=1, preserve_scale=0.5, eta=2.0)
    torch.manual_seed(3)
    loss = module.erasure_loss(noisy(module, X, T, BATCH))

    def predictions(model, x, t, prompts):
        return model.denoise(x, t, model.encode(prompts))

    def error(difference, t):
        a = module.backbone.process.alpha(t).view(-1, 1, 1, 1)
        return ((1 - a) / a * difference.square()).mean()

    models = module.backbone, module.original
    (student, concept), none = (
        [predictions(model, X, T, BATCH.prompts) for model in models],
        predictions(module.original, X, T, ["", ""]),
    )
    by_hand = error(student - (none - 2 * (concept - none)), T)
    torch.manual_seed(3)
    x, t = pure_noise(module.backbone, 2)
    word = module.words.table[module.words.candidates[:, 0]]
    drift = error(models[0].denoise(x, t, word) - models[1].denoise(x, t, word), t)
    assert torch.allclose(loss, by_hand + 0.5 * drift, rtol=1e-4)


def test_a_sample_is_one_word_with_the_gradient_of_all():
    module = eap()
    sample = module.mixture(noisy(module, X, T, BATCH)).tokens
    for row, candidates in zip(sample, module.words.candidates, strict=True):
        gaps = (module.words.table.tokens[candidates] - row).abs().amax(dim=(1, 2))
        assert gaps.min() < 1e-5
    gradient = torch.autograd.grad(sample.square().sum(), module.words.logits)[0]
    assert (gradient.abs() > 0).sum() > len(CONCEPTS)


def test_no_erased_word_is_a_candidate(tmp_path):
    """Of a user's file either: it would be the nearest, and preserved."""
    words = tmp_path / "words.txt"
    words.write_text("cat\ntree\nstars\ncar\n")
    module = eap(vocabulary=str(words))
    assert len(module.words.table) == 2
    words.write_text("cat\nstars\n")
    with pytest.raises(ErasureError, match="EAP needs words beside the concepts .* none in"):
        eap(vocabulary=str(words))


def test_states_of_candidates_alone_are_kept():
    """Those of all words of a long list would take gigabytes."""
    module = eap(vocabulary="things", closest=8, centres=3)
    assert 3 <= len(module.words.table) <= 3 * len(CONCEPTS)
    assert module.words.candidates.shape == (len(CONCEPTS), 3)


def test_every_rank_resumes_with_its_own_words(monkeypatch):
    module = eap()
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    (first,) = checkpoint["mixtures"]
    second = first | {"logits": first["logits"] + 1.0}
    checkpoint["mixtures"] = [first, second]
    for rank, state in enumerate((first, second)):
        monkeypatch.setattr("erasure_lightning.distributed.collectives.rank", lambda r=rank: r)
        module.on_load_checkpoint(checkpoint)
        module.on_train_start()
        assert torch.equal(module.words.logits, state["logits"])


def test_the_adversary_finds_the_word_that_the_edit_harms_more_than_by_chance():
    """Drift at samples of a trained mixture, against that of the one it began with."""
    module = eap(moved=0.1, adversary_lr=0.3, temperature=0.5)
    batch = noisy(module, X, T, BATCH)

    def drift():
        torch.manual_seed(0)
        with torch.no_grad():
            samples = [module.drift(X, T, module.mixture(batch)).item() for _ in range(10)]
        return sum(samples)

    before = drift()
    for _ in range(15):
        module.words.ascend(module.drift(X, T, module.mixture(batch)))
    assert drift() > before
    assert all(parameter.grad is None for parameter in module.editable().values())


def test_the_adversary_ascends_the_drift(monkeypatch):
    module = eap(moved=0.1, adversary_lr=0.3)
    objectives = []
    monkeypatch.setattr(module.words, "ascend", objectives.append)
    module.erasure_loss(noisy(module, X, T, BATCH))
    (objective,) = objectives
    assert objective > 0
    (gradient,) = torch.autograd.grad(objective, module.words.logits)
    assert gradient.any()


def test_without_preservation_it_is_esd_in_clean_latents():
    module = eap(preserve_scale=0.0)
    logits = module.words.logits.clone()
    batch = noisy(module, X, T, BATCH)
    teacher = batch.teacher
    target = 2 * teacher.unconditional - teacher.concept
    by_hand = module.prediction_error(module.student(batch), target, T)
    assert torch.equal(module.erasure_loss(batch), by_hand)
    assert torch.equal(module.words.logits, logits)
    assert not torch.equal(eap(preserve_scale=1.0).erasure_loss(batch), by_hand)  # the control


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eta": -1.0}, "EAP needs eta of at least 0; found -1.0"),
        ({"centres": 0}, "EAP needs centres of at least 1; found 0"),
        ({"temperature": 0.0}, "EAP needs temperature above 0; found 0.0"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        eap(**arguments)
