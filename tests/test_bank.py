import pytest
import torch

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.bank import Teacher, TrajectoryBank
from erasure_lightning.concepts import Batch
from erasure_lightning.errors import ErasureError
from erasure_lightning.sampling import sample

SENTENCES = Batch(["a {}", "a {}", "the {}"], ["cat", "star", "cat"], ["dog", "", "dog"])


class Counting(TinyBackbone):
    """Counts the pictures its denoiser is asked about."""

    def __init__(self):
        super().__init__()
        self.evaluations = 0

    def denoise(self, x, t, conditioning):
        self.evaluations += len(x)
        return super().denoise(x, t, conditioning)


def filled(model, **arguments):
    bank = TrajectoryBank(**({"steps": 4, "guidance": 2.0, "batch_size": 2} | arguments))
    bank.follow(model, lambda _: SENTENCES, seed=5)
    return bank


@pytest.fixture
def bank(tiny):
    return filled(tiny)


def test_it_holds_the_walk_that_sampling_takes(tiny, bank):
    generator = torch.Generator().manual_seed(5)
    seeds = torch.randint(2**31, (3,), generator=generator).tolist()
    held, ends = bank._held, sample(tiny, SENTENCES.prompts, seeds, steps=4, guidance=2.0)
    scheduler = tiny.scheduler(4)
    guided = held["nothing"][:, -1] + 2.0 * (held["concept"][:, -1] - held["nothing"][:, -1])
    after = scheduler.step(guided, scheduler.timesteps[-1], held["x"][:, -1], return_dict=False)[0]
    assert torch.allclose(after, ends, atol=1e-5)


def test_what_is_drawn_lies_on_the_concept_s_own_walks(bank):
    drawn = bank.draw(["star", "cat", "cat", "cat", "cat", "cat"])
    assert drawn.batch.concepts == ["star", *["cat"] * 5]
    assert set(drawn.batch.templates[1:]) == {"a {}", "the {}"}


@pytest.mark.parametrize("guidance", [2.0, 1.0])
def test_its_answers_are_the_teachers(tiny, guidance):
    bank = filled(tiny, guidance=guidance)
    drawn = bank.draw(["star", "cat"])
    kept, asked = bank.teacher(tiny, drawn), Teacher(tiny, drawn.x, drawn.t, drawn.batch)
    for question in ("concept", "anchor", "nothing"):
        assert torch.allclose(getattr(kept, question), getattr(asked, question), atol=1e-5)
    assert torch.allclose(kept.anchor[0], kept.nothing[0], atol=1e-5)  # a star has no anchor
    assert not torch.allclose(kept.anchor[1], kept.concept[1], atol=1e-3)


def test_the_teacher_is_asked_once_however_much_is_drawn():
    model = Counting()
    bank = filled(model)
    walked = model.evaluations
    assert walked == 3 * 2 * 4  # guidance asks twice
    for _ in range(40):
        bank.follow(model, lambda _: SENTENCES, seed=5)
        teacher = bank.teacher(model, bank.draw(["cat", "cat", "star"]))
        assert teacher.anchor.shape == teacher.concept.shape == teacher.nothing.shape
    assert model.evaluations <= walked + 3 * 4 + 20  # each anchor once, but twice where drawn twice in one batch


def test_a_student_s_walk_is_no_teacher():
    student, original = Counting(), Counting()
    bank = filled(student, student=True, refresh=1)
    bank.teacher(original, bank.draw(["cat"])).concept  # noqa: B018
    assert original.evaluations == 1
    assert set(bank._held) == {"x", "t", "known x"}


def test_refreshing_walks_anew():
    model, bank = Counting(), TrajectoryBank(steps=2, guidance=1.0, refresh=3)
    walks = []
    for _ in range(7):
        bank.follow(model, lambda walk: walks.append(walk) or SENTENCES, seed=0)
        bank.draw(["cat"])
    assert walks == [0, 1, 2]
    assert model.evaluations == 3 * 3 * 2


def test_half_precision_halves_the_memory(tiny, bank):
    half = filled(tiny, half=True)
    fixed = sum(bank._held[key].nbytes for key in bank._held if key == "t" or key.startswith("known"))
    assert half.nbytes() - fixed == (bank.nbytes() - fixed) // 2
    assert half.draw(["cat"]).x.dtype == torch.float32


def test_seeds_keep_ranks_apart(tiny, bank):
    other = TrajectoryBank(steps=4, guidance=2.0)
    other.follow(tiny, lambda _: SENTENCES, seed=6)
    assert not torch.equal(other._held["x"][:, 0], bank._held["x"][:, 0])


def test_a_bank_restored_draws_the_same(tiny, bank):
    bank.teacher(tiny, bank.draw(["cat"])).anchor  # noqa: B018
    other = TrajectoryBank(steps=4)
    other.load_state_dict(bank.state_dict())
    torch.manual_seed(1)
    a = bank.draw(["cat"] * 5)
    torch.manual_seed(1)
    b = other.draw(["cat"] * 5)
    assert torch.equal(a.x, b.x)
    assert a.batch == b.batch
    assert torch.equal(bank.teacher(tiny, a).anchor, other.teacher(tiny, b).anchor)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0}, "needs steps of at least 1; found 0"),
        ({"student": True}, "needs refresh of at least 1 to follow the student; found 0"),
    ],
)
def test_arguments_that_make_no_bank(arguments, words):
    with pytest.raises(ErasureError, match=words):
        TrajectoryBank(**arguments)


def test_other_steps_of_the_same_trajectories(tiny, bank):
    drawn = bank.draw(["star", "cat"])
    other = bank.at(drawn.rows, (drawn.columns + 1) % 4)
    assert other.batch == drawn.batch
    assert not torch.equal(other.t, drawn.t)
    assert torch.equal(bank.at(other.rows, drawn.columns).x, drawn.x)
    asked = Teacher(tiny, other.x, other.t, other.batch)
    assert torch.allclose(bank.teacher(tiny, other).concept, asked.concept, atol=1e-5)
