import gc
import hashlib
import weakref
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from under_attack import CAT, tiny_target

from erasure_lightning.attacks.base import Attack, AttackResult, ConceptAttack
from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.attacks.runner import (
    attack_concepts,
    attack_grid,
    with_edit,
    write_outcome,
)
from erasure_lightning.concepts.concept import Concept


class Known(ConceptAttack):
    """Shows the concept in half of its images with the first seed, in none with the second."""

    def find(self, target, case):
        shown = [f"a {case.concept.name}" if case.seed == 0 else "a dog", "a dog"]
        images = torch.stack([target.scorer.picture(text) for text in shown])
        tensors = {"v": torch.ones(2)} if case.seed else {}
        return AttackResult(images, prompt=f"{case.concept.name}!", tensors=tensors)


class Counted(Attack):
    """Evaluates a denoiser three times, once with gradient."""

    def search(self, target, cases):
        x = target.edited.noise([0])
        t = torch.tensor(5)
        conditioning = target.edited.encode(["a cat"])
        target.edited.denoise(x, t, conditioning)
        with torch.no_grad():
            target.original.denoise(torch.cat([x, x]), t, conditioning.expand(2))
        return [AttackResult(torch.zeros(2, 3, 16, 16)) for _ in cases]


@pytest.fixture
def attacked():
    lines = []
    outcome, scored = attack_concepts(Known(), tiny_target([*CAT, Concept("star")]), lines.append)
    return outcome, scored, lines


def test_success_is_estimated_over_seeds_and_all_images(attacked):
    success = attacked[0].success["attacked"]
    assert success.mean == pytest.approx(0.25)
    assert (success.seeds, success.images) == (2, 8)
    assert (success.low, success.high) == (0.0, 1.0)  # two seeds, 0.5 and 0
    assert set(attacked[0].success) == {"original", "plain", "attacked"}


def test_a_style_is_compared_with_images_that_name_none():
    class Sketch(ConceptAttack):
        def find(self, target, case):
            return AttackResult(torch.zeros(4, 3, 16, 16))

    concepts = [*CAT, Concept("drawing", kind="style")]
    target = tiny_target(concepts)
    encoded = []
    encode = target.edited.encode
    target.edited.encode = lambda prompts: encoded.extend(prompts) or encode(prompts)
    outcome, scored = attack_concepts(Sketch(), target, str)
    assert [list(case.controls) for case in scored] == [[], ["no style"]] * 2
    things = [case.case.thing for case in scored if case.case.thing]
    assert [f"a {thing}" in encoded for thing in things] == [True, True]
    assert outcome.controls["no style"].images == 4  # of the style alone
    wide, narrow = (
        attack_grid(*attack_concepts(Sketch(), tiny_target(c), str))
        for c in ([concepts[1]], concepts)
    )
    assert wide.width > narrow.width  # a grid of both kinds has the columns of both


def test_a_record_for_each_concept_and_seed(attacked):
    cases = attacked[0].cases
    assert [(case.concept, case.seed, case.success, case.prompt) for case in cases] == [
        ("cat", 0, 0.5, "cat!"),
        ("star", 0, 0.5, "star!"),
        ("cat", 1, 0.0, "cat!"),
        ("star", 1, 0.0, "star!"),
    ]
    files = [None, None, "cat-1.safetensors", "star-1.safetensors"]
    assert [case.embedding for case in cases] == files


def test_concepts_of_the_same_letters_have_files_of_their_own(tmp_path):
    concepts = [Concept("C++"), Concept("C#"), Concept("C 2")]
    outcome, scored = attack_concepts(Known(), tiny_target(concepts), lambda line: None)
    write_outcome(tmp_path, outcome, scored)
    files = [case.embedding for case in outcome.cases if case.seed]
    assert files == ["c-1.safetensors", "c-2-1.safetensors", "c-2-2-1.safetensors"]
    assert {path.name for path in tmp_path.glob("*.safetensors")} == set(files)


def test_each_case_is_reported_in_a_line(attacked):
    assert len(attacked[2]) == 4
    assert attacked[2][0].startswith("cat, seed 0: recognised in 50% by 'cat!' (plain ")


def test_the_attack_alone_is_counted():
    outcome, _ = attack_concepts(Counted(), tiny_target(), lambda line: None)
    assert outcome.cost["evaluations"] == 2 * 3
    assert outcome.cost["backwards"] == 2 * 1
    assert outcome.cost["seconds"] >= 0
    assert not tiny_target().edited.denoiser._forward_hooks


def test_scored_images_do_not_stay_in_memory():
    """Those of many concepts and controls would fill a device; one of each is in the grid."""
    drawn = weakref.WeakSet()

    class Drawing(Known):
        def find(self, target, case):
            result = super().find(target, case)
            drawn.add(result.images)
            return replace(result, controls={"none": result.images}, curve={1: result.images})

    _, scored = attack_concepts(Drawing(), tiny_target(), lambda line: None)
    gc.collect()
    assert not drawn
    assert scored[0].kinds["attacked"].number == 2


def test_the_written_files(attacked, tmp_path):
    outcome, scored, _ = attacked
    (tmp_path / "edit").write_bytes(b"an edit")
    folder = tmp_path / "attack"
    write_outcome(folder, with_edit(outcome, "UCE", tmp_path / "edit", "a paper"), scored)
    files = {"attack.json", "grid.png", "cat-1.safetensors", "star-1.safetensors"}
    assert {path.name for path in folder.iterdir()} == files
    saved = Outcome.load(folder / "attack.json")
    digest = hashlib.sha256(b"an edit").hexdigest()[:16]
    assert (saved.method, saved.edit) == ("UCE", digest)
    assert (saved.paper, saved.attack) == ("a paper", "Known")
    assert load_file(folder / "cat-1.safetensors")["v"].tolist() == [1, 1]
    assert Image.open(folder / "grid.png").width >= 640
