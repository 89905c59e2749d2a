from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from contracts import VARIANT
from lightning import Trainer
from trivial import Distillation, Idle, Redirection

from erasure_lightning.backbones.tiny import TINY_BACKBONES, TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.worlds import find_world
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.ca import CA
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.sdd import SDD
from erasure_lightning.testing import check_method, edit_of, quick_fit
from erasure_lightning.training.backbone_checks import check_world
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CAT = [Concept("cat", "dog")]
GIVEN = {"lr": 1e-2, "thorough": False}


@pytest.mark.parametrize("family", TINY_BACKBONES)
@pytest.mark.parametrize("method", [Distillation, Redirection])
def test_both_shapes_keep_every_promise_on_every_family(method, family):
    """The tests of the methods demand bfloat16's of the first family alone."""
    arguments = {"lr": 1e-2} if method is Distillation else {}
    world = "emoji-world" if family is TinyBackbone else None
    check_method(method, families=[family], world=world, **arguments)


def test_a_method_that_does_nothing_is_caught():
    with pytest.raises(AssertionError, match="Idle changed nothing"):
        check_method(Idle)


class Unseeded(Distillation):
    """Draws from a generator of its own, which no seed of the run reaches."""

    draws = torch.Generator()

    def erasure_loss(self, batch):
        return super().erasure_loss(batch) * torch.rand((), generator=self.draws)


class Forgetful(Distillation):
    """Counts its steps, and keeps the count from its checkpoints."""

    count = 0

    def erasure_loss(self, batch):
        self.count += 1
        x = batch.x * self.count
        return super().erasure_loss(replace(batch, x=x))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Unseeded, "Unseeded on TinyBackbone gives two edits for one seed"),
        (Forgetful, "Forgetful on TinyBackbone ends elsewhere when resumed"),
    ],
)
def test_an_edit_that_is_no_function_of_the_seed_is_caught(method, words):
    with pytest.raises(AssertionError, match=words):
        check_method(method, families=[TinyBackbone], **GIVEN)


class Plain(TinyBackbone):
    """A family without attention maps."""

    capabilities = TinyBackbone.capabilities - {"attention maps"}


class Needy(Distillation):
    """Needs them."""

    needs = frozenset({"attention maps"})


class Careless(Needy):
    """Would train without what it needs."""

    def configure_model(self):
        self.needs = frozenset()
        super().configure_model()
        del self.needs


class Idler(Distillation):
    """Trains a part of the text encoder that its loss does not depend on."""

    def erasure_loss(self, batch):
        return (
            (self.student(batch, self.original.encode(batch.prompts)) - batch.teacher.anchor)
            .square()
            .mean()
        )

    def editable(self):
        return super().editable() | self.backbone.text_parameters(1)


class TestFamilies:
    def test_one_without_what_the_method_needs_is_refused(self):
        assert isinstance(check_method(Needy, families=[Plain, TinyBackbone], **GIVEN), Needy)

    def test_a_method_that_does_not_refuse_it_is_caught(self):
        with pytest.raises(
            AssertionError, match=r"does not refuse Plain, which lacks \['attention maps'\]"
        ):
            check_method(Careless, families=[TinyBackbone, Plain], **GIVEN)

    def test_one_at_least_must_suit(self):
        with pytest.raises(AssertionError, match=r"Needy suits no family of \['Plain'\]"):
            check_method(Needy, families=[Plain], **GIVEN)

    def test_a_parameter_without_a_gradient_is_caught(self):
        with pytest.raises(
            AssertionError,
            match=r"Idler on TinyBackbone trains text_encoders\..* without a gradient",
        ):
            check_method(Idler, families=[TinyBackbone], **GIVEN)


def test_distillation_learns_what_the_loss_says():
    """The positive control of everything built on it: the concept's prediction goes to the
    anchor's.
    """
    module = quick_fit(Distillation(concepts=CAT, backbone=TinyBackbone(), lr=1e-2), 60)
    x, t = torch.randn(4, 4, 8, 8), torch.tensor([100.0, 300.0, 600.0, 900.0])
    ask = lambda model, word: model.denoise(x, t, model.encode([word]).expand(4))  # noqa: E731
    target, before = ask(module.original, "a dog"), ask(module.original, "a cat")
    after = ask(module.backbone, "a cat")
    assert (after - target).square().mean() < 0.5 * (before - target).square().mean()


def test_seeds_differ_and_repeat():
    one, same, other = (
        edit_of(quick_fit(Distillation(concepts=CAT, backbone=TinyBackbone(), seed=s), 2))
        for s in (0, 0, 1)
    )
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


class Recorder(Distillation):
    """Records the times of its latents, and what it logs."""

    def __init__(self, **arguments):
        super().__init__(concepts=CAT, backbone=TinyBackbone(), **arguments)
        self.times, self.logged = [], []

    def erasure_loss(self, batch):
        self.times.append(tuple(batch.t.tolist()))
        return super().erasure_loss(batch)

    def log(self, name, value, **options):
        self.logged.append((self.global_step, name, float(value)))


def test_every_step_draws_anew():
    module = quick_fit(Recorder(), 4)
    assert len(set(module.times)) == 4


def test_terms_have_the_weight_of_their_step_and_a_gradient_norm_of_all_parameters():
    module = Recorder()
    module.configure_model()
    steps = []
    term = SimpleNamespace(
        label="sum",
        weight_at=lambda step: steps.append(step) or 3.0,
        term=lambda owner: torch.stack([p.sum() for p in owner.trainable().values()]).sum(),
    )
    module.retention.append(term)
    quick_fit(module, 4, log_every_n_steps=2)
    assert steps == [0, 1, 2, 3]
    norms = [(step, value) for step, name, value in module.logged if name == "gradient/sum"]
    count = sum(p.numel() for p in module.trainable().values())
    assert [step for step, _ in norms] == [1, 3]
    assert [value for _, value in norms] == pytest.approx([3 * count**0.5] * 2)


def test_a_bank_feeds_the_loss_and_resumes():
    bank = TrajectoryBank(trajectories=2, steps=3, refresh=2)
    check_method(Distillation, steps=4, latents=bank, **VARIANT)


@pytest.mark.parametrize("method", [Distillation, ESD, SDD, CA])
def test_every_rollout_of_a_bank_has_every_concept(method):
    concepts = [Concept(name) for name in ("cat", "star", "bow")]
    module = method(concepts=concepts, backbone=TinyBackbone())
    module.configure_model()
    models = module.models()
    sets = [models.sentences(4, number) for number in range(40)]
    assert all(len(each.concepts) == 4 for each in sets)
    assert all(set(each.indices) == {0, 1, 2} for each in sets)


def test_a_checkpoint_holds_the_edit_and_no_code(tmp_path):
    module = quick_fit(
        Distillation(concepts=CAT, backbone=TinyBackbone()), 2, save=tmp_path / "x.ckpt"
    )
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert {k.removeprefix("backbone.") for k in saved["state_dict"]} == set(module.editable())
    assert saved["hyper_parameters"]["concepts"] == [
        {"name": "cat", "anchor": "dog", "domain": [], "kind": "thing"}
    ]
    assert saved["erasure"]["method"] == "trivial.Distillation"
    edited = sum(p.numel() for p in module.editable().values())
    assert (
        tmp_path / "x.ckpt"
    ).stat().st_size < 4 * edited * 3 + 60_000  # the edit and Adam's two moments of it


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c["state_dict"].popitem(),
            "edits 8 parameters as configured; the checkpoint has 7",
        ),
        (
            lambda c: c["erasure"].update(backbone_fingerprint="other"),
            "edits a model with fingerprint other",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, change, words):
    module = quick_fit(
        Distillation(concepts=CAT, backbone=TinyBackbone()), 1, save=tmp_path / "x.ckpt"
    )
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    change(saved)
    with pytest.raises(ErasureError, match=words):
        module.on_load_checkpoint(saved)


def test_only_the_edit_gets_a_gradient():
    module = quick_fit(Distillation(concepts=CAT, backbone=TinyBackbone()), 1)
    editable = {id(p) for p in module.editable().values()}
    trainable = [p for p in module.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == editable
    assert all(p.grad is None for p in module.parameters() if id(p) not in editable)


def test_testing_draws_both_models_from_the_same_noise():
    module = Distillation(concepts=CAT, backbone=TinyBackbone())
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    seen = []
    module.test_step = lambda batch, i, step=module.test_step: (
        seen.append(step(batch, i)) or seen[-1]
    )
    trainer.test(module, PromptData(others=2, steps=2), verbose=False)
    assert all(torch.equal(s["original"], s["edited"]) for s in seen)
    assert sum(len(s["original"]) for s in seen) == (3 + 2) * 3


def test_the_world_must_know_the_concept():
    module = Distillation(backbone="emoji-world", concepts=[Concept("cigarrete", "lollipop")])
    with pytest.raises(
        ErasureError, match="emoji-world does not know 'cigarrete'. Nearest: cigarette"
    ):
        module.configure_model()
    module = Distillation(backbone="emoji-world", concepts=[Concept("qqq")])
    message = r"does not know 'qqq'\. `find_world\('emoji-world'\)\.labels` lists"
    with pytest.raises(ErasureError, match=message):
        module.configure_model()


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        (Concept("Twemoji", "noto"), "'Twemoji' as a style; found the kind thing. Give it kind: s"),
        (Concept("fox", kind="style"), "'fox' as a thing; found the kind style. Give it kind: t"),
    ],
)
def test_the_world_must_know_the_concept_as_its_kind(concept, message):
    """No image would be recognised as a thing `twemoji`, not even of the original."""
    world = find_world("emoji-world")
    with pytest.raises(ErasureError, match=message):
        check_world(world, [concept])
    check_world(world, [Concept("Twemoji", kind="style"), Concept("fox"), Concept("smoking")])
