import pytest
import torch
from torch.testing import assert_close

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.diffusion.sampling import sample_latents
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.latent_sources import SourceModels, Teacher
from erasure_lightning.training.trajectory_bank import TrajectoryBank

SENTENCES = PromptBatch(
    ["a {}", "a {}", "the {}"], ["cat", "star", "cat"], ["dog", "", "dog"], [0, 1, 0]
)


class Counting(TinyBackbone):
    """Counts the images in the denoiser's batches."""

    def __init__(self):
        super().__init__()
        self.evaluations = 0

    def denoise(self, x, t, conditioning, guidance=None):
        self.evaluations += len(x)
        return super().denoise(x, t, conditioning, guidance)


def models(model, sentences=lambda count, number: SENTENCES, seed=5):
    return SourceModels(model, model, sentences, 2, seed)


def filled(model, **arguments):
    bank = TrajectoryBank(**({"steps": 4, "guidance": 2.0, "batch_size": 2} | arguments))
    bank.update(models(model))
    return bank


def of(*concepts):
    """A step's sentences of concepts by number."""
    names = [("cat", "dog"), ("star", "")]
    words, anchors = zip(*(names[index] for index in concepts), strict=True)
    return PromptBatch(["a {}"] * len(words), list(words), list(anchors), list(concepts))


CAT, STAR = 0, 1


@pytest.fixture
def bank(tiny):
    return filled(tiny)


def test_it_holds_the_rollout_that_sampling_takes(tiny, bank):
    generator = torch.Generator().manual_seed(5)
    seeds = torch.randint(2**31, (3,), generator=generator).tolist()
    held, ends = bank._held, sample_latents(tiny, SENTENCES.prompts, seeds, steps=4, guidance=2.0)
    sampler = tiny.sampler(4)
    guided = held["unconditional"][:, -1] + 2.0 * (
        held["concept"][:, -1] - held["unconditional"][:, -1]
    )
    after = sampler.step(guided, 3, held["x"][:, -1])
    assert torch.allclose(after, ends, atol=1e-5)


def test_what_is_drawn_lies_on_the_concept_s_own_trajectories(tiny, bank):
    drawn = bank.draw(of(STAR, *[CAT] * 5), models(tiny))
    assert drawn.sentences.concepts == ["star", *["cat"] * 5]
    assert set(drawn.sentences.templates[1:]) == {"a {}", "the {}"}


def test_two_concepts_of_one_name_keep_their_trajectories_apart(tiny):
    """As where a word is erased towards two anchors."""
    twice = PromptBatch(["a {}", "a {}"], ["cat", "cat"], ["dog", "star"], [0, 1])
    bank = TrajectoryBank(steps=2)
    bank.update(models(tiny, lambda count, number: twice))
    for index, anchor in enumerate(["dog", "star"]):
        batch = PromptBatch(["the {}"] * 8, ["cat"] * 8, [anchor] * 8, [index] * 8)
        assert set(bank.draw(batch, models(tiny)).sentences.anchors) == {anchor}


@pytest.mark.parametrize("guidance", [2.0, 1.0])
def test_its_answers_are_the_teachers(tiny, guidance):
    bank = filled(tiny, guidance=guidance)
    drawn = bank.draw(of(STAR, CAT), models(tiny))
    cached, anew = drawn.teacher, Teacher(tiny, drawn.x, drawn.t, drawn.sentences)
    for query in ("concept", "anchor", "unconditional"):
        assert torch.allclose(getattr(cached, query), getattr(anew, query), atol=1e-5)
    assert torch.allclose(
        cached.anchor[0], cached.unconditional[0], atol=1e-5
    )  # a star has no anchor
    assert not torch.allclose(cached.anchor[1], cached.concept[1], atol=1e-3)


def test_the_teacher_predicts_once_however_much_is_drawn():
    model = Counting()
    bank = filled(model)
    rolled_out = model.evaluations
    assert rolled_out == 3 * 2 * 4  # guidance predicts twice
    for _ in range(40):
        teacher = bank.draw(of(CAT, CAT, STAR), models(model)).teacher
        assert teacher.anchor.shape == teacher.concept.shape == teacher.unconditional.shape
    assert (
        model.evaluations <= rolled_out + 3 * 4 + 20
    )  # each anchor once, but twice where drawn twice in one batch


def test_a_student_s_rollout_is_no_teacher():
    student, original = Counting(), Counting()
    bank = TrajectoryBank(steps=4, guidance=2.0, student=True, refresh=1)
    drawn = bank.draw(
        of(CAT), SourceModels(original, student, lambda count, number: SENTENCES, 2, seed=5)
    )
    assert (original.evaluations, student.evaluations) == (0, 3 * 2 * 4)
    drawn.teacher.concept  # noqa: B018
    assert original.evaluations == 1
    assert set(bank._held) == {"x", "t", "known x"}


def test_refreshing_rolls_out_anew():
    model, bank = Counting(), TrajectoryBank(steps=2, guidance=1.0, refresh=3)
    numbers = []
    for _ in range(7):
        bank.draw(of(CAT), models(model, lambda count, number: numbers.append(number) or SENTENCES))
    assert numbers == [0, 1, 2]
    assert model.evaluations == 3 * 3 * 2


def test_refreshing_begins_at_other_noise(tiny):
    bank = TrajectoryBank(steps=2, guidance=1.0, refresh=1)
    starts = []
    for _ in range(2):
        bank.draw(of(CAT), models(tiny))
        starts.append(bank._held["x"][:, 0])
    assert not torch.allclose(*starts, atol=1e-3)


def test_a_refresh_between_a_batch_and_its_targets_mixes_up_neither(tiny):
    """The steps of an adversary's search draw, and refresh, after the loss's own batch."""
    bank = filled(tiny, refresh=1)
    drawn = bank.draw(of(STAR, CAT), models(tiny))
    before = bank._held["x"]
    bank.draw(of(CAT), models(tiny))
    assert not torch.allclose(bank._held["x"], before, atol=1e-3)  # the control
    assert_is_the_teacher_s(drawn, tiny)
    rows = torch.arange(3).repeat_interleave(4)
    assert_is_the_teacher_s(bank.at(rows, torch.arange(4).repeat(3), tiny), tiny)


def assert_is_the_teacher_s(batch, model):
    anew = Teacher(model, batch.x, batch.t, batch.sentences)
    for query in ("concept", "anchor", "unconditional"):
        assert_close(getattr(batch.teacher, query), getattr(anew, query), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("trajectories", "rollouts"), [(2, 3), (1, 2)])
def test_more_concepts_than_trajectories_do_not_raise_the_cost_of_a_draw(trajectories, rollouts):
    """As in a recipe with one trajectory a step, whose list of concepts is longer."""
    model = Counting()
    bank = TrajectoryBank(trajectories, steps=2, guidance=1.0, refresh=2)
    counts = []
    of_two = models(model, lambda count, number: counts.append(count) or SENTENCES)
    for _ in range(6):
        bank.draw(of(CAT), of_two)
    assert counts == [2] * rollouts  # one for each of the two concepts, every 2 or every 4 draws


def test_half_precision_halves_the_memory(tiny, bank):
    half = filled(tiny, half=True)
    fixed = sum(
        bank._held[key].nbytes for key in bank._held if key == "t" or key.startswith("known")
    )
    assert half.nbytes() - fixed == (bank.nbytes() - fixed) // 2
    assert half.draw(of(CAT), models(tiny)).x.dtype == torch.float32
    for key in ("x", "concept", "unconditional"):  # eleven significant bits, of the same rollout
        full = bank._held[key]
        assert_close(half._held[key].float(), full, rtol=2**-11, atol=1e-7)
        assert not torch.equal(half._held[key].float(), full), "the control: it is rounded"


def test_seeds_keep_ranks_apart(tiny, bank):
    other = TrajectoryBank(steps=4, guidance=2.0)
    other.update(models(tiny, seed=6))
    assert not torch.equal(other._held["x"][:, 0], bank._held["x"][:, 0])


def test_a_bank_restored_draws_the_same(tiny, bank):
    bank.draw(of(CAT), models(tiny)).teacher.anchor  # noqa: B018
    other = TrajectoryBank(steps=4)
    other.load_state_dict(bank.state_dict())
    torch.manual_seed(1)
    a = bank.draw(of(*[CAT] * 5), models(tiny))
    torch.manual_seed(1)
    b = other.draw(of(*[CAT] * 5), models(tiny))
    assert torch.equal(a.x, b.x)
    assert a.sentences == b.sentences
    assert torch.equal(a.teacher.anchor, b.teacher.anchor)


def test_another_fit_has_trajectories_of_its_own(tiny, bank):
    """As of a bank that was passed to two methods, one after the other."""
    stars = PromptBatch(["the {}"], ["star"], ["heart"], [0])
    state = bank.state_dict()
    of_stars = models(tiny, lambda count, number: stars)
    bank.prepare(of_stars)
    assert bank.draw(of(CAT), of_stars).sentences == stars
    bank.load_state_dict(state)
    bank.prepare(of_stars)
    assert bank.draw(of(STAR), of_stars).sentences.concepts == ["star"]  # the checkpoint's own
    assert bank.sentences == SENTENCES


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
    drawn = bank.at(torch.tensor([1, 2]), torch.tensor([0, 3]), tiny)
    other = bank.at(drawn.rows, torch.tensor([1, 0]), tiny)
    assert other.sentences == drawn.sentences
    assert not torch.equal(other.t, drawn.t)
    assert torch.equal(bank.at(other.rows, torch.tensor([0, 3]), tiny).x, drawn.x)
    anew = Teacher(tiny, other.x, other.t, other.sentences)
    assert torch.allclose(other.teacher.concept, anew.concept, atol=1e-5)


def test_other_sentences_at_the_same_latents_get_predictions_of_their_own(tiny, bank):
    """What a bank holds belongs to sentences, and not to latents."""
    drawn = bank.draw(of(CAT), models(tiny))
    other = drawn.with_sentences(PromptBatch(["a {}"], ["house"], ["tree"]))
    assert torch.equal(other.x, drawn.x)
    assert torch.equal(
        other.teacher.concept, Teacher(tiny, drawn.x, drawn.t, other.sentences).concept
    )
    assert not torch.allclose(other.teacher.concept, drawn.teacher.concept, atol=1e-3)
