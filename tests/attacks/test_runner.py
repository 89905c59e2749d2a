import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from under_attack import CAT, tiny_target

from erasure_lightning.attacks.base import Attack, ConceptAttack, Found
from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.attacks.runner import attack_all, of_edit, write_outcome
from erasure_lightning.concepts.concept import Concept


class Known(ConceptAttack):
    """Shows the concept in half of its pictures with the first seed, in none with the second."""

    def find(self, target, case):
        shown = [f"a {case.concept.name}" if case.seed == 0 else "a dog", "a dog"]
        pictures = torch.stack([target.scorer.picture(text) for text in shown])
        return Found(
            pictures,
            prompt=f"{case.concept.name}!",
            tensors={"v": torch.ones(2)} if case.seed else {},
        )


class Watched(Attack):
    """Asks a denoiser three times, once with gradient."""

    def search(self, target, cases):
        x, t, asked = target.edited.noise([0]), torch.tensor(5), target.edited.encode(["a cat"])
        target.edited.denoise(x, t, asked)
        with torch.no_grad():
            target.original.denoise(torch.cat([x, x]), t, asked.expand(2))
        return [Found(torch.zeros(2, 3, 16, 16)) for _ in cases]


@pytest.fixture
def attacked():
    told = []
    outcome, attempts = attack_all(Known(), tiny_target([*CAT, Concept("star")]), told.append)
    return outcome, attempts, told


def test_success_is_estimated_over_seeds_and_all_pictures(attacked):
    success = attacked[0].success["attacked"]
    assert success.mean == pytest.approx(0.25)
    assert (success.seeds, success.pictures) == (2, 8)
    assert (success.low, success.high) == (0.0, 1.0)  # two seeds, 0.5 and 0
    assert set(attacked[0].success) == {"original", "plain", "attacked"}


def test_a_finding_for_each_concept_and_seed(attacked):
    found = attacked[0].found
    assert [(f.concept, f.seed, f.success, f.prompt) for f in found] == [
        ("cat", 0, 0.5, "cat!"), ("star", 0, 0.5, "star!"), ("cat", 1, 0.0, "cat!"), ("star", 1, 0.0, "star!")
    ]  # fmt: skip
    assert [f.embedding for f in found] == [None, None, "cat-1.safetensors", "star-1.safetensors"]


def test_each_attempt_is_told_in_a_line(attacked):
    assert len(attacked[2]) == 4
    assert attacked[2][0].startswith("cat, seed 0: recognised in 50% by 'cat!' (plain ")


def test_the_attack_alone_is_counted():
    outcome, _ = attack_all(Watched(), tiny_target(), lambda line: None)
    assert outcome.cost["evaluations"] == 2 * 3
    assert outcome.cost["backwards"] == 2 * 1
    assert outcome.cost["seconds"] >= 0
    assert not tiny_target().edited.denoiser._forward_hooks


def test_what_is_written(attacked, tmp_path):
    outcome, attempts, _ = attacked
    write_outcome(tmp_path, of_edit(outcome, "UCE", "0" * 16, "a paper"), attempts)
    assert {path.name for path in tmp_path.iterdir()} == {
        "attack.json", "grid.png", "cat-1.safetensors", "star-1.safetensors"
    }  # fmt: skip
    saved = Outcome.load(tmp_path / "attack.json")
    assert (saved.method, saved.edit, saved.paper, saved.attack) == (
        "UCE",
        "0" * 16,
        "a paper",
        "Known",
    )
    assert load_file(tmp_path / "cat-1.safetensors")["v"].tolist() == [1, 1]
    assert Image.open(tmp_path / "grid.png").width >= 640
