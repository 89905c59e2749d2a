"""What every retention callback promises, and what each of them holds."""

from functools import cache

import pytest
import torch
from PIL import Image
from trivial import Distillation, Redirection

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.word_lists import COCO_OBJECTS, WELL_KNOWN_STYLES
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.retention.base import far_from, retained_prompts
from erasure_lightning.retention.beyond_concept import BeyondConceptRegularization
from erasure_lightning.retention.global_alignment import GlobalSemanticAlignment
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.retention.local_states import LocalStatePreservation
from erasure_lightning.retention.unconditional_drift import UnconditionalDrift
from erasure_lightning.testing import edit_of, quick_fit
from erasure_lightning.training.image_sources import ImageFolder
from erasure_lightning.training.latent_sources import PureNoise
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CAT = [Concept("cat", "dog")]
BEYOND = BeyondConceptRegularization
KEPT = ["a star", "a heart", "a tree", "a car", "a boat"]


def module(method=SAGE, **arguments):
    built = method(concepts=CAT, backbone=TinyBackbone(), **arguments)
    built.configure_model()
    return built


def ready(callback, owner):
    callback.retained = KEPT
    callback.prepare(owner)
    return callback


TERMS = {
    "cross": lambda: GlobalSemanticAlignment(batch_size=4),
    "self": lambda: GlobalSemanticAlignment(mode="self"),
    "kl": lambda: GlobalSemanticAlignment(mode="kl_softmax"),
    "noise": lambda: LocalNoisePreservation(batch_size=3),
    "states": lambda: LocalStatePreservation(batch_size=3),
    "unconditional": UnconditionalDrift,
    "trajectory": lambda: LocalNoisePreservation(
        batch_size=3, latents=TrajectoryBank(trajectories=2, steps=3)
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_zero_at_the_original_and_more_behind_it(name):
    owner = module(blocks=None)
    callback = ready(TERMS[name](), owner)
    assert callback.term(owner).abs() < 1e-6
    for parameter in owner.editable().values():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    assert callback.term(owner) > 1e-6


#: Terms about text states have nothing to hold where the denoiser is edited.
PAIRS = [(SAGE, n) for n in TERMS] + [
    (Distillation, n) for n in ("noise", "trajectory", "unconditional")
]


STEPS = 10


def fresh(method):
    numbers = {"check_steps": 0, "blocks": None, "lr": 1e-3} if method is SAGE else {"lr": 3e-3}
    return module(method, warmup=1, **numbers)


@cache
def without_terms(method):
    """A method's fit without a retention callback, beside which those with one are held."""
    return quick_fit(fresh(method), STEPS)


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_it_holds_what_it_names_with_any_gradient_method(name, method):
    """Retained prompts go less far with the term than without it."""
    free, held = without_terms(method), fresh(method)
    callback = TERMS[name]()
    callback.prompts, callback.weight = KEPT, 300.0 if name in ("cross", "self") else 10.0
    quick_fit(held, STEPS, callback)
    term = ready(TERMS[name](), held)
    torch.manual_seed(0)
    with_term = term.term(held)
    torch.manual_seed(0)
    assert with_term < 0.7 * term.term(free)


def test_both_terms_join_the_loss_of_a_trivial_method():
    logged = {}

    class Watching(Distillation):
        def log_dict(self, values, **_):
            logged.update(values)

        def log(self, name, value, **_):
            logged[name] = value

    owner = module(Watching)
    with pytest.warns(UserWarning, match="Watching edits no text encoder"):
        quick_fit(
            owner,
            2,
            GlobalSemanticAlignment(prompts=KEPT),
            LocalNoisePreservation(prompts=KEPT),
            log_every_n_steps=2,
        )
    assert {
        "loss/erasure",
        "loss/global",
        "loss/local",
        "gradient/erasure",
        "gradient/local",
    } <= logged.keys()
    assert logged["loss/global"] == 0


class TestByHand:
    """Of three of the five prompts, at a student unlike its original."""

    @pytest.fixture
    def owner(self):
        owner = module(blocks=None)
        for parameter in owner.editable().values():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        return owner

    def value(self, callback, owner):
        """The term, and the numbers of the prompts that it draws."""
        ready(callback, owner)
        torch.manual_seed(5)
        value = callback.term(owner)
        torch.manual_seed(5)
        return value, torch.randperm(5)[:3].tolist()

    def cosines(self, model, rows, columns):
        states = model.summarize(model.embed(KEPT))
        return torch.cosine_similarity(states[rows].unsqueeze(1), columns, dim=2)

    @pytest.mark.parametrize("mode", ["cross", "self"])
    def test_similarities(self, owner, mode):
        callback = GlobalSemanticAlignment(mode=mode, batch_size=3)
        value, rows = self.value(callback, owner)
        now, before = (
            model.summarize(model.embed(KEPT)) for model in (owner.backbone, owner.original)
        )
        columns = (before, before) if mode == "cross" else (now[rows], before[rows])
        gaps = self.cosines(owner.backbone, rows, columns[0])
        gaps = gaps - self.cosines(owner.original, rows, columns[1])
        assert torch.allclose(value, gaps.square().mean(), rtol=1e-4, atol=0)

    def test_divergence_of_similarities(self, owner):
        callback = GlobalSemanticAlignment(mode="kl_softmax", batch_size=3, temperature=0.3)
        value, rows = self.value(callback, owner)
        columns = owner.original.summarize(owner.original.embed(KEPT))
        now, before = (
            (self.cosines(model, rows, columns).double() / 0.3).softmax(dim=1)
            for model in (owner.backbone, owner.original)
        )
        by_hand = (before * (before.log() - now.log())).sum(dim=1).mean()
        assert torch.allclose(value.double(), by_hand, rtol=1e-2, atol=0)

    def test_states(self, owner):
        value, rows = self.value(LocalStatePreservation(batch_size=3), owner)
        prompts = [KEPT[row] for row in rows]
        now, before = (m.encode(prompts).tokens for m in (owner.backbone, owner.original))
        assert torch.allclose(value, (now - before).square().mean(), atol=0)

    def test_predictions(self, owner):
        callback = LocalNoisePreservation(batch_size=3)
        latents = []
        draw = callback.latents.draw
        callback.latents.draw = lambda *arguments: latents.append(draw(*arguments)) or latents[-1]
        value, rows = self.value(callback, owner)
        ((x, t),) = [(batch.x, batch.t) for batch in latents]
        prompts = [KEPT[row] for row in rows]
        now, before = (m.denoise(x, t, m.encode(prompts)) for m in (owner.backbone, owner.original))
        assert torch.allclose(value, (now - before).square().mean(), atol=0)

    def test_predictions_on_trajectories_of_the_seed(self, owner):
        seeds = set()
        for seed in (0, 1):
            owner.seed = seed
            bank = TrajectoryBank(trajectories=2, steps=2)
            callback = ready(LocalNoisePreservation(batch_size=7, latents=bank), owner)
            assert callback._sentences().templates == [KEPT[0]] * 7
            seeds.add(callback._models(owner).seed)
        assert len(seeds) == 2

    def test_predictions_on_images_of_a_folder_are_for_all_prompts(self, owner, tmp_path):
        Image.new("RGB", (32, 32), "red").save(tmp_path / "one.png")
        latents = ImageFolder(str(tmp_path))
        callback = ready(LocalNoisePreservation(batch_size=3, latents=latents), owner)
        sentences = [callback._sentences().templates for _ in range(8)]
        assert {prompt for batch in sentences for prompt in batch} == set(KEPT)
        assert all(len(set(batch)) == 3 for batch in sentences)


def shared_by_method(latents):
    return module(latents=latents), [LocalNoisePreservation(prompts=KEPT, latents=latents)]


def shared_by_callbacks(latents):
    return module(), [
        LocalNoisePreservation(prompts=prompts, latents=latents) for prompts in (KEPT[:2], KEPT[2:])
    ]


@pytest.mark.parametrize(
    ("share", "owner"),
    [(shared_by_method, "SAGE"), (shared_by_callbacks, "LocalNoisePreservation")],
)
def test_latents_of_other_prompts_are_refused(share, owner):
    fitted, callbacks = share(TrajectoryBank(trajectories=2, steps=2))
    with pytest.raises(
        ErasureError, match=f"of its own, of retained prompts; found those of {owner}"
    ):
        quick_fit(fitted, 1, *callbacks)
    fitted, callbacks = share(PureNoise())  # the control: it has no prompts
    quick_fit(fitted, 1, *callbacks)


@pytest.mark.parametrize("kind", [LocalNoisePreservation, UnconditionalDrift, BEYOND])
def test_every_term_has_a_ramp(kind):
    assert kind(weight=3.0, ramp=2).weight_at(0) == 1.5


def test_the_weight_ramps_up():
    callback = LocalNoisePreservation(weight=2.0, ramp=4)
    assert [callback.weight_at(step) for step in (0, 1, 3, 9)] == [0.5, 1.0, 2.0, 2.0]


class Keeping(Redirection):
    """The closed form of the tests, with what callbacks hold."""

    def solve(self):
        def fill(equations, source):
            names, anchors = (
                [getattr(c, which) for c in self.concepts] for which in ("name", "anchor")
            )
            equations.redirect(
                *(source.rows(self.original.encode(w)).flatten(0, 1) for w in (names, anchors))
            )

        return self.solve_each(fill, ridge=0.1)


@pytest.mark.parametrize("make", [LocalNoisePreservation, UnconditionalDrift])
def test_a_closed_form_holds_the_states_of_what_is_retained(make):
    free, held, callback = module(Keeping), module(Keeping), make(weight=100.0)
    callback.prompts = KEPT if make is LocalNoisePreservation else [""]
    quick_fit(free, 1)
    quick_fit(held, 1, callback)

    def moved(owner):
        states = owner.original.encode(callback.prompts).tokens
        layers = owner.original.text_layers()
        return sum((states @ (w - layers[n.removesuffix(".weight")].weight).T).square().sum()
                   for n, w in owner.editable().items())  # fmt: skip

    assert moved(held) < 0.1 * moved(free)


def test_a_closed_form_has_no_text_states_to_hold():
    with pytest.warns(UserWarning, match="Redirection edits no text encoder"):
        built = quick_fit(module(Redirection), 1, GlobalSemanticAlignment(prompts=KEPT))
    source = built.original.text_inputs()[0]
    assert not built.retention_gram(source).any()


def test_banks_resume():
    owner = module()
    callback = ready(TERMS["trajectory"](), owner)
    callback.term(owner)
    other = TERMS["trajectory"]()
    other.load_state_dict(callback.state_dict())
    assert callback.latents.sentences.concepts
    assert other.latents.sentences == callback.latents.sentences
    assert torch.equal(
        other.latents.state_dict()["held"]["x"], callback.latents.state_dict()["held"]["x"]
    )


class TestRetainedPrompts:
    def test_named(self):
        owner, callback = module(Distillation), LocalNoisePreservation(prompts=KEPT)
        quick_fit(owner, 1, callback)
        assert callback.retained == KEPT

    @pytest.mark.parametrize("retained_share", [1.0, 0.5])
    def test_of_the_vocabulary_but_for_the_nearest(self, retained_share):
        callback = LocalNoisePreservation(retained_share=retained_share)
        owner = quick_fit(module(Distillation), 1, callback)
        assert callback.retained == retained_prompts(owner, retained_share)
        fewer = len(callback.retained) < len(retained_prompts(owner, 1.0))
        assert fewer == (retained_share < 1)  # the control

    def test_of_a_shipped_list_but_for_the_concepts(self, tmp_path):
        """Of a user's own list all."""
        (tmp_path / "own.txt").write_text("Giotto\nMonet\n")
        giotto = Distillation(concepts=[Concept("Giotto", kind="style")], backbone=TinyBackbone())
        shipped, own = (
            LocalNoisePreservation(prompts=source)
            for source in ("artists", str(tmp_path / "own.txt"))
        )
        quick_fit(giotto, 1, shipped, own)
        assert shipped.retained == [name for name in shipped.prompts if name != "Giotto"]
        assert len(shipped.retained) == len(shipped.prompts) - 1
        assert own.retained == ["Giotto", "Monet"]

    def test_from_a_file(self, tmp_path):
        (tmp_path / "kept.txt").write_text("a star\n\n a tree \n")
        assert LocalNoisePreservation(prompts=str(tmp_path / "kept.txt")).prompts == [
            "a star",
            "a tree",
        ]

    @pytest.mark.parametrize(
        ("content", "words"), [(None, "could not be read: No such file"), ("\n\n", "holds none")]
    )
    def test_a_bad_file(self, tmp_path, content, words):
        if content is not None:
            (tmp_path / "kept.txt").write_text(content)
        with pytest.raises(ErasureError, match=words):
            GlobalSemanticAlignment(prompts=str(tmp_path / "kept.txt"))

    def test_from_the_world_without_concept_and_domain(self):
        concept = Concept("cigarette", "lollipop", domain=["syringe"])
        owner = Distillation(backbone="emoji-world", concepts=[concept])
        owner.configure_model()
        prompts = retained_prompts(owner, retained_share=1)
        assert {"a lollipop", "a dog", "an emoji of a dog"} <= set(prompts)
        assert not [p for p in prompts if "cigarette" in p or "syringe" in p]


class TestNearness:
    WORDS = ("car", "cat", "kite", "dog", "star")

    def owner(self, *concepts):
        owner = Distillation(concepts=list(concepts), backbone=TinyBackbone())
        owner.configure_model()
        return owner

    def ranked(self, owner):
        """The words, nearest to the first concept first."""
        model, name = owner.original, owner.concepts[0].name
        states = [model.summarize(model.embed(words)) for words in ([name], self.WORDS)]
        order = torch.cosine_similarity(*states).argsort(descending=True)
        return [self.WORDS[place] for place in order.tolist()]

    @pytest.mark.parametrize(("retained_share", "dropped"), [(1, 0), (0.98, 0), (0.8, 1), (0.4, 3)])
    def test_the_nearest_share_is_dropped(self, retained_share, dropped):
        owner = self.owner(Concept("cow"))
        far = far_from(owner, self.WORDS, retained_share)
        assert set(self.WORDS) - set(far) == set(self.ranked(owner)[:dropped])
        assert far == [word for word in self.WORDS if word in far]

    def test_an_anchor_is_never_dropped(self):
        nearest, *_ = self.ranked(self.owner(Concept("cow")))
        for anchor in (nearest, f" {nearest.upper()}"):
            owner = self.owner(Concept("cow", anchor))
            assert nearest in far_from(owner, self.WORDS, 0.8)
        assert nearest not in far_from(self.owner(Concept("cow")), self.WORDS, 0.8)  # the control

    def test_an_encoder_to_which_all_texts_are_near_leaves_as_many(self, monkeypatch):
        """As CLIP's unprojected states do: no cosine is below 0.6."""
        owner = self.owner(Concept("cow"))
        plain = owner.original.summarize
        monkeypatch.setattr(owner.original, "summarize", lambda e: plain(e) + 100)
        assert len(far_from(owner, self.WORDS, 0.8)) == len(self.WORDS) - 1

    def test_many_concepts_leave_the_share_too(self):
        concepts = [Concept(f"thing {i}") for i in range(60)]
        captions = retained_prompts(self.owner(*concepts), 0.98)
        assert len(captions) == 3 * (len(COCO_OBJECTS) - 1)


class TestKin:
    """What is near a concept and must survive, without a world and with one."""

    def prompts(self, *concepts, **arguments):
        owner = Distillation(concepts=list(concepts), **({"backbone": TinyBackbone()} | arguments))
        owner.configure_model()
        return retained_prompts(owner, retained_share=1)

    def test_an_anchor_that_is_no_label_is_retained(self):
        assert {"lollipop", "a lollipop", "an image of a lollipop"} <= set(
            self.prompts(Concept("cigarette", "lollipop"))
        )
        assert "a lollipop" not in self.prompts(Concept("cigarette"))  # the control
        assert self.prompts(Concept("cat", "dog")).count("a dog") == 1

    def test_with_a_world_too(self):
        prompts = self.prompts(Concept("cigarette", "pencil sharpener"), backbone="emoji-world")
        assert {"a pencil sharpener", "an emoji of a pencil sharpener"} <= set(prompts)

    def test_other_artists_are_retained_where_one_is_erased(self):
        prompts = self.prompts(Concept("Van Gogh", "photograph", kind="style"))
        styles = {prompt.rpartition(", ")[2] for prompt in prompts if prompt.endswith(" style")}
        assert styles == {f"{s} style" for s in WELL_KNOWN_STYLES if s != "Vincent van Gogh"}
        assert not [
            prompt for prompt in self.prompts(Concept("cat")) if "style" in prompt
        ]  # the control

    def test_other_people_are_retained_where_one_is_erased(self):
        prompts = self.prompts(Concept("Ada Lovelace", "a mathematician", kind="person"))
        assert {"a photo of a woman", "a photo of a mathematician", "a dog"} <= set(prompts)
        assert not [prompt for prompt in prompts if "Ada" in prompt]
        assert "a photo of a woman" not in self.prompts(Concept("cat"))  # the control


def test_nothing_left():
    owner = Distillation(concepts=[Concept("cat", domain=[*COCO_OBJECTS])], backbone=TinyBackbone())
    owner.configure_model()
    with pytest.raises(ErasureError, match="found no label of the world beside concepts"):
        retained_prompts(owner, retained_share=1)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_out_of_range(temperature):
    with pytest.raises(ErasureError, match=f"needs temperature above 0; found {temperature}"):
        GlobalSemanticAlignment(mode="kl_softmax", temperature=temperature)


def test_two_callbacks_of_a_class_retain_prompts_of_their_own():
    """Each has a state in checkpoints, under a key of its own."""
    callbacks = [LocalNoisePreservation(prompts=[prompt]) for prompt in KEPT[:2]]
    quick_fit(module(), 1, *callbacks)
    assert [(c.label, c.retained) for c in callbacks] == [
        ("local", KEPT[:1]),
        ("local_2", KEPT[1:2]),
    ]


def test_two_callbacks_of_a_class_have_latents_of_their_own(tmp_path):
    banks = [TrajectoryBank(trajectories=2, steps=steps) for steps in (2, 3)]
    callbacks = [LocalNoisePreservation(prompts=KEPT, latents=bank) for bank in banks]
    quick_fit(module(), 1, *callbacks, save=tmp_path / "saved.ckpt")
    states = torch.load(tmp_path / "saved.ckpt", weights_only=False)["callbacks"]
    (first,), (second,) = (states[callback.state_key]["latents"] for callback in callbacks)
    assert [part["held"]["x"].shape[1] for part in (first, second)] == [2, 3]


def test_trajectories_that_are_rolled_out_anew_are_of_other_prompts():
    bank = TrajectoryBank(trajectories=2, steps=2, refresh=1)
    owner = module()
    callback = ready(LocalNoisePreservation(batch_size=1, latents=bank), owner)
    seen = []
    for _ in range(3):
        callback.term(owner)
        seen.append(bank.sentences.templates)
    assert len(set(map(tuple, seen))) == 3
    assert {*seen[0], *seen[1], *seen[2]} == set(KEPT)


def test_checkpoints_of_earlier_versions_have_the_same_keys():
    key = GlobalSemanticAlignment(retained_share=0.5).state_key
    assert key.startswith("GlobalSemanticAlignment{'weight': 1.0, 'ramp': 0, 'nearness': 0.5,")


@pytest.mark.parametrize("retained_share", [0.0, -1.0, 1.1])
def test_a_retained_share_out_of_range(retained_share):
    message = f"retained_share above 0 and at most 1; found {retained_share}"
    with pytest.raises(ErasureError, match=message):
        GlobalSemanticAlignment(retained_share=retained_share)


@pytest.mark.parametrize("arguments", [{"weight": -1.0}, {"ramp": -1}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(
        ErasureError, match=f"needs {next(iter(arguments))} of at least 0; found -1"
    ):
        GlobalSemanticAlignment(**arguments)


def test_a_run_with_every_term_repeats():
    one, two = (
        edit_of(quick_fit(module(), 3, *(make() for make in TERMS.values()))) for _ in range(2)
    )
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_a_second_fit_without_a_callback_is_without_its_term():
    fitted = quick_fit(module(), 1, LocalNoisePreservation(prompts=KEPT))
    assert "loss/local" in fitted.trainer.callback_metrics  # the control
    quick_fit(fitted, 1)
    assert "loss/erasure" in fitted.trainer.callback_metrics
    assert "loss/local" not in fitted.trainer.callback_metrics


def test_an_empty_list_is_no_default():
    with pytest.raises(ErasureError, match="LocalNoisePreservation needs at least one prompt"):
        LocalNoisePreservation(prompts=[])


@pytest.mark.parametrize("prompts", [3, ["a cat", 3]])
def test_prompts_that_are_no_texts_are_refused(prompts):
    with pytest.raises(ErasureError, match="needs prompts as a list of texts; found"):
        LocalNoisePreservation(prompts=prompts)


@pytest.mark.parametrize(
    "callback",
    [
        GlobalSemanticAlignment(prompts=KEPT),
        GlobalSemanticAlignment(prompts=KEPT, mode="kl_softmax"),
        UnconditionalDrift(),
    ],
    ids=["cross", "kl_softmax", "unconditional"],
)
def test_an_edit_that_has_changed_nothing_yet_costs_nothing_in_mixed_precision(callback):
    terms = []
    term = callback.term
    callback.term = lambda owner: terms.append(term(owner)) or terms[-1]
    quick_fit(module(lr=1e-2), 2, callback, precision="bf16-mixed")
    first, second = terms
    assert first.dtype == torch.float32
    assert first == 0
    assert second > 0  # the control
