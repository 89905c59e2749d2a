import pytest
import torch

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.errors import ErasureError
from erasure_lightning.sampling import TrajectoryBank, sample


class Counting(TinyBackbone):
    """Counts the pictures its denoiser is asked about."""

    def __init__(self):
        super().__init__()
        self.evaluations = 0

    def denoise(self, x, t, conditioning):
        self.evaluations += len(x)
        return super().denoise(x, t, conditioning)


@pytest.fixture
def bank(tiny):
    bank = TrajectoryBank(trajectories=3, steps=4, guidance=2.0, batch_size=2)
    bank.follow(tiny, ["a cat", "a dog"], seed=5)
    return bank


def test_the_bank_holds_the_walk_that_sampling_takes(tiny, bank):
    generator = torch.Generator().manual_seed(5)
    seeds = torch.randint(2**31, (3,), generator=generator).tolist()
    held, ends = bank._held, sample(tiny, ["a cat", "a dog", "a cat"], seeds, steps=4, guidance=2.0)
    last = held["x"][:, -1], held["t"][0, -1], held["conditional"][:, -1], held["unconditional"][:, -1]
    scheduler = tiny.scheduler(4)
    guided = last[3] + 2.0 * (last[2] - last[3])
    after = scheduler.step(guided, scheduler.timesteps[-1], last[0], return_dict=False)[0]
    assert torch.allclose(after, ends, atol=1e-5)


def test_its_predictions_are_the_teachers(tiny, bank):
    drawn = bank.draw(["a dog", "a cat"])
    again = tiny.denoise(drawn.x, drawn.t, tiny.encode(["a dog", "a cat"]))
    nothing = tiny.denoise(drawn.x, drawn.t, tiny.encode([""]).expand(2))
    assert torch.allclose(drawn.conditional, again, atol=1e-5)
    assert torch.allclose(drawn.unconditional, nothing, atol=1e-5)


def test_a_trajectory_is_walked_once_however_much_is_drawn():
    model, bank = Counting(), TrajectoryBank(trajectories=2, steps=5, guidance=2.0)
    for _ in range(20):
        bank.follow(model, ["a cat"], seed=0)
        bank.draw(["a cat"] * 4)
    assert model.evaluations == 2 * 2 * 5  # guidance asks twice


def test_refreshing_walks_anew():
    model, bank = Counting(), TrajectoryBank(trajectories=1, steps=2, guidance=1.0, refresh=3)
    for _ in range(7):
        bank.follow(model, ["a cat"], seed=0)
        bank.draw(["a cat"])
    assert model.evaluations == 3 * 2


def test_half_precision_halves_the_memory(tiny, bank):
    half = TrajectoryBank(trajectories=3, steps=4, guidance=2.0, half=True)
    half.follow(tiny, ["a cat", "a dog"], seed=5)
    times = bank._held["t"].nbytes
    assert half.nbytes() - times == (bank.nbytes() - times) // 2
    assert half.draw(["a cat"]).x.dtype == torch.float32


def test_seeds_keep_ranks_apart(tiny, bank):
    other = TrajectoryBank(trajectories=3, steps=4, guidance=2.0)
    other.follow(tiny, ["a cat", "a dog"], seed=6)
    assert not torch.equal(other._held["x"][:, 0], bank._held["x"][:, 0])


def test_a_bank_restored_draws_the_same(bank):
    other = TrajectoryBank(trajectories=3, steps=4)
    other.load_state_dict(bank.state_dict())
    torch.manual_seed(1)
    a = bank.draw(["a cat"] * 5)
    torch.manual_seed(1)
    assert all(torch.equal(p, q) for p, q in zip(a, other.draw(["a cat"] * 5), strict=True))


def test_counts_below_one_are_refused():
    with pytest.raises(ErasureError, match="needs steps of at least 1; found 0"):
        TrajectoryBank(steps=0)
