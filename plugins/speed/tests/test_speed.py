"""SPEED: the constrained minimiser, its retained rows, value maps only; and the erasure itself."""

from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch
from erasure_lightning_speed.null_space import (
    Rows,
    above_mean,
    centres,
    null_space,
    refined,
    unconstrained,
    update,
)
from erasure_lightning_speed.speed import SPEED

from erasure_lightning.__main__ import main
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinySD3
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.registry import METHOD, find_offer
from erasure_lightning.testing import check_method, edit_of, quick_fit
from erasure_lightning.training.prompt_states import cosine_matrix

RETAINED = ["dog", "tree", "car", "bird", "fish", "house", "red cathedral", "a small boat"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]


def speed(concepts=CONCEPTS, **arguments):
    module = SPEED(concepts=concepts, backbone=TinyBackbone(), **({"retain": RETAINED} | arguments))
    module.configure_model()
    return module


def last(module, prompt):
    """The row before the end-of-text token, ``(D,)`` in float64."""
    (embedded,) = module.original.embed([prompt])
    return module.original.encode([prompt]).tokens[0, int(embedded.ends) - 1].double()


class Problem:
    """Random rows, a map and a null space of 14 in 20 dimensions."""

    def __init__(self):
        self.weight = torch.randn(12, 20, dtype=torch.float64)
        self.rows = Rows(*(torch.randn(n, 20, dtype=torch.float64) for n in (3, 3, 6, 4)))
        self.free = null_space(self.rows.retained, 1e-9)
        self.held = torch.zeros(20, 20, dtype=torch.float64)

    def solve(self, soften=0.0, held=None, ridge=0.3):
        return update(
            self.weight, self.rows, self.free, self.held if held is None else held, ridge, soften
        )


@pytest.mark.parametrize(
    "arguments", [{}, {"augment": 0, "templates": ["a {}"]}, {"filter": False, "soften": 0.5}]
)
def test_contract(arguments):
    check_method(SPEED, retain=RETAINED, thorough=not arguments, **arguments)


class TestUpdate:
    def test_is_the_minimiser_among_the_updates_that_hold_everything(self):
        """Solved directly: in a basis of the null space that the empty prompt's rows do not reach
        either.
        """
        p = Problem()
        reached = p.free @ p.free.mT @ p.rows.empty.mT
        basis = p.free - torch.linalg.qr(reached).Q @ torch.linalg.qr(reached).Q.mT @ p.free
        basis = torch.linalg.svd(basis).U[:, : p.free.shape[1] - 4]
        keys = basis.mT @ p.rows.concepts.mT
        gram = keys @ keys.mT + 3 * 0.3 * torch.eye(len(keys))
        expected = (
            p.weight
            @ (p.rows.anchors - p.rows.concepts).mT
            @ keys.mT
            @ torch.linalg.inv(gram)
            @ basis.mT
        )
        assert torch.allclose(p.solve(), expected)
        assert expected.abs().max() > 0.1

    def test_what_is_retained_and_the_empty_prompt_do_not_feel_it(self):
        p = Problem()
        assert (p.solve() @ p.rows.retained.mT).abs().max() < 1e-9
        assert (p.solve() @ p.rows.empty.mT).abs().max() < 1e-9
        assert (p.solve(soften=0.5) @ p.rows.empty.mT).abs().max() > 1e-3  # the control
        assert (unconstrained(p.weight, p.rows) @ p.rows.retained.mT).abs().max() > 1e-3

    def test_the_concepts_come_out_as_their_anchors_where_there_is_room(self):
        p = Problem()
        images = p.rows.concepts @ (p.weight + p.solve(ridge=1e-9)).mT
        assert torch.allclose(images, p.rows.anchors @ p.weight.mT, atol=1e-5)

    def test_holds_what_callbacks_ask_for(self):
        p = Problem()
        row = torch.randn(1, 20, dtype=torch.float64)
        assert (p.solve(held=1e9 * row.mT @ row) @ row.mT).abs().max() < 1e-6
        assert (p.solve() @ row.mT).abs().max() > 1e-2

    def test_empty_rows_that_are_retained_already_constrain_nothing(self):
        p = Problem()
        p.rows = p.rows._replace(empty=p.rows.retained[:4])
        assert p.solve().isfinite().all()
        assert (p.solve() @ p.rows.empty.mT).abs().max() < 1e-9

    def test_no_free_direction_is_an_error(self):
        with pytest.raises(ErasureError, match="a direction that retained texts leave free"):
            null_space(torch.randn(50, 8, dtype=torch.float64), 1e-6)


class TestRetained:
    def test_rows_that_move_less_than_the_mean_are_dropped(self):
        p = Problem()
        retained = refined(p.weight, p.rows, 10, True, torch.Generator().manual_seed(0))
        moved = (p.rows.retained @ unconstrained(p.weight, p.rows).mT).norm(dim=1)
        strong = p.rows.retained[moved > moved.mean()]
        assert 0 < len(strong) < len(p.rows.retained)
        assert torch.equal(retained[: len(strong)], strong)
        assert 0 < len(retained) - len(strong) < 10 * len(strong)

    def test_copies_differ_where_the_map_reads_least(self):
        p = Problem()
        p.rows = p.rows._replace(retained=p.rows.retained[:1])
        copies = refined(p.weight, p.rows, 10, False, torch.Generator().manual_seed(0))[1:]
        steps = torch.nn.functional.normalize(copies - p.rows.retained, dim=1)
        least = torch.linalg.svd(p.weight, full_matrices=False).S[-1]
        assert torch.allclose((steps @ p.weight.mT).norm(dim=1), least.expand(len(steps)))

    def test_without_copies_everything_is_retained(self):
        p = Problem()
        assert torch.equal(refined(p.weight, p.rows, 0, True, torch.Generator()), p.rows.retained)

    def test_rows_that_move_alike_all_stay(self):
        assert len(above_mean(torch.ones(3, 4), torch.ones(2, 4))) == 3

    def test_texts_with_a_concepts_words_are_left_out(self):
        texts = ["dog", "red cathedral", "dog"]
        module = speed(retain=[*texts, "a Cat", "star, gold"])
        assert module.retained_texts() == texts[:2]

    @pytest.mark.parametrize("named", ["C++ code", "two cats", "a whisker"])
    def test_names_of_any_spelling_plurals_and_domains_are_left_out(self, named):
        concepts = [Concept("C++", "dog"), Concept("cat", "dog", domain=["whisker"])]
        texts = ["catalogue", "C code", "a dog"]
        assert speed(concepts, retain=[*texts, named]).retained_texts() == texts

    def test_everything_left_out_is_an_error(self):
        with pytest.raises(ErasureError, match="something to retain"):
            speed(retain=["a cat"]).retained_texts()


def test_centres_are_means_of_what_is_nearest():
    rows = torch.cat([torch.randn(5, 3) * 0.1 + place for place in (0.0, 10.0, 20.0)])
    assert torch.allclose(
        centres(rows).sort(dim=0).values, rows.view(3, 5, 3).mean(dim=1), atol=1e-5
    )


def test_templates_have_retained_things_as_those_of_the_data():
    module = speed(templates=["a {thing}, {} style"])
    (thing,) = module.prompts.with_things(["{thing}"])
    filled = speed(templates=[f"a {thing}, {{}} style"])
    rows, expected = (each.rows(each.original.text_inputs()[0]) for each in (module, filled))
    assert thing
    assert torch.equal(rows.concepts, expected.concepts)
    assert torch.equal(rows.retained, expected.retained)


def test_values_move_from_concept_to_anchor_and_nothing_else_does():
    module = quick_fit(speed(augment=0, retain_scale=1e-4), 1)
    assert {name.rpartition(".to_")[2] for name in edit_of(module)} == {"v.weight"}
    for name, new in module.editable().items():
        old, new = module.original.get_parameter(name).double(), new.double()
        missing = (
            (new - old) @ last(module, "cat") - old @ (last(module, "dog") - last(module, "cat"))
        ).norm()
        assert missing < 0.3 * (old @ (last(module, "dog") - last(module, "cat"))).norm()
        held = torch.stack([last(module, prompt) for prompt in ("tree", "house", "")])
        assert (held @ (new - old).mT).norm() < 0.1 * ((new - old) @ last(module, "cat")).norm()
    x, t, prompts = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([100.0, 900.0]),
        module.backbone.encode(["a cat", "a star"]),
    )
    keys = cosine_matrix(
        module.backbone.denoise(x, t, prompts).flatten(1),
        module.original.denoise(x, t, prompts).flatten(1),
    )
    assert keys.diagonal().max() < 1 - 1e-6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"threshold": 0.0}, "SPEED needs threshold above 0; found 0.0"),
        ({"augment": -1}, "SPEED needs augment of at least 0; found -1"),
        ({"templates": ["a photo"]}, "found 'a photo'"),
        ({"retain": "nowhere.txt"}, "nowhere.txt could not be read"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        speed(**arguments)


@pytest.mark.parametrize("family", [TinySD3, TinyFlux])
def test_where_no_map_computes_values_the_text_s_entries_are_edited(family):
    arguments = {"retain": RETAINED, "augment": 0, "threshold": 1e-6, "retain_scale": 1e-3}
    module = SPEED(concepts=[Concept("cat", "lamp")], backbone=family(), **arguments)
    module.configure_model()
    solution = module.solve()
    assert solution.keys() == module.editable().keys()
    tokens, pooled = module.original.text_inputs()
    assert {f"{name}.weight" for name in (*tokens.layers, *pooled.layers)} == solution.keys()
    for source in (tokens, pooled):
        ((name, old),) = zip(source.layers, source.weights(), strict=True)
        change = solution[f"{name}.weight"] - old
        rows = module.rows(source)
        moved = (change @ rows.concepts.mT).norm(dim=0).mean()
        assert moved > 1e-3
        for held in (rows.retained, rows.empty):
            assert (change @ held.mT.to(change)).norm(dim=0).mean() < 0.05 * moved
        images = solution[f"{name}.weight"] @ rows.concepts.mT, old @ rows.concepts.mT.to(old)
        anchor = old @ rows.anchors.mT.to(old)
        assert (images[0] - anchor).norm() < 0.9 * (images[1] - anchor).norm()


def installed():
    try:
        return bool(distribution("erasure-lightning-speed").entry_points)
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(not installed(), reason="entry points are those of an installed package")
class TestInstalled:
    def test_it_is_known_by_name_with_its_paper(self):
        method = find_offer(METHOD, "SPEED")
        assert method.class_path == "erasure_lightning_speed.speed.SPEED"
        assert "2503.07392" in method.paper
        assert method.summary

    def test_its_config_runs_by_name(self, tmp_path, monkeypatch):
        pytest.importorskip("erasure_lightning_emoji_world")
        monkeypatch.chdir(tmp_path)
        quick = ["--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
        assert (
            main(
                ["fit", "--config", "speed.yaml", *quick, "--trainer.enable_progress_bar", "false"]
            )
            == 0
        )


def recognised(model, words):
    """Share of images of ``a WORD`` that the world's scorer calls so."""
    scorer, labels = Scorer.load(model.world.scorer), [label.name for label in model.world.labels]
    generated = sample_images(
        model, [f"a {word}" for word in words], range(len(words)), steps=10, guidance=4.0
    )
    nearest = (
        scorer.images(generated) @ scorer.texts([f"a {label}" for label in labels]).T
    ).argmax(dim=1)
    return sum(
        model.world.same(labels[i], word) for i, word in zip(nearest, words, strict=True)
    ) / len(words)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    pytest.importorskip("erasure_lightning_emoji_world")
    module = quick_fit(
        SPEED(
            backbone="emoji-world",
            concepts=[Concept("cigarette", "lollipop")],
            templates=["{}", "a {}"],
        ),
        1,
    )
    others = ["fox", "grapes", "guitar", "snowman"]
    assert recognised(module.original, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, others) == recognised(module.original, others) == 1
