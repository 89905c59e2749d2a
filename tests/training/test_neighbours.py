"""RealEra's samplers, their expectation, and what stage A's terms do to a map."""

import pytest
import torch

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.neighbours import (
    Mining,
    Neighbourhood,
    expected_gram,
    orthogonal_gram,
    orthogonal_states,
    replace_states,
    states_at_cosines,
)
from erasure_lightning.training.regression import Regression, corrected_weight

WIDTH = 64


def states(count=500, width=WIDTH):
    return torch.randn(count, width) * torch.linspace(0.8, 1.2, count).unsqueeze(1)


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def norm_of(e, cosine):
    """The distance at which a neighbour has this cosine."""
    return e.norm(dim=1) * (2 - 2 * cosine) ** 0.5


class TestSamplers:
    @pytest.mark.parametrize("sampler", ["direct", "reject"])
    @pytest.mark.parametrize("distance", [None, 5.5])
    def test_every_neighbour_meets_both_constraints(self, sampler, distance):
        e, place = states(), Neighbourhood(0.7, 0.9, distance)
        drawn = place.draw(e, sampler, generator())
        cosines = torch.cosine_similarity(e, drawn)
        assert cosines.min() > 0.7 - 1e-5
        assert cosines.max() < 0.9 + 1e-5
        assert torch.allclose(drawn.norm(dim=1), e.norm(dim=1), rtol=1e-5)
        far = (drawn - e).norm(dim=1)
        assert far.max() <= (5.5 if distance else norm_of(e, 0.7).max()) + 1e-4
        assert (
            distance is None or (norm_of(e, 0.7) > 5.5).any()
        )  # the control: the distance does bind

    @pytest.mark.parametrize("sampler", ["direct", "reject"])
    def test_rows_of_zeros_stay(self, sampler):
        e = torch.cat((states(3), torch.zeros(2, WIDTH)))
        drawn = Neighbourhood(0.7, 0.9).draw(e, sampler, generator())
        assert not drawn[3:].any()
        assert torch.cosine_similarity(e[:3], drawn[:3]).max() < 0.9 + 1e-5

    def test_they_agree_in_the_distribution_of_cosines(self):
        e, place = torch.randn(4000, 512), Neighbourhood(0.6, 0.9)
        one, two = (
            torch.cosine_similarity(e, place.draw(e, sampler, generator())).sort().values
            for sampler in ("direct", "reject")
        )
        assert kolmogorov(one, two) < 0.04
        assert kolmogorov(one, torch.full_like(one, 0.75)) > 0.4  # the control

    def test_a_generator_decides(self):
        e, place = states(5), Neighbourhood(0.5, 0.9)
        one, two, other = (place.draw(e, "direct", generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)

    @pytest.mark.parametrize("sampler", ["direct", "reject", "beyond"])
    def test_channels_that_a_state_lacks_stay_empty(self, sampler):
        e = states(400, width=16)
        e[:200, 10:] = 0  # as CLIP's states in Stable Diffusion 3
        place = Neighbourhood(0.7, 0.9)
        drawn = orthogonal_states(e) if sampler == "beyond" else place.draw(e, sampler, generator())
        assert not drawn[:200, 10:].any()
        assert drawn[200:].all()
        assert drawn[:200, :10].all()
        cosines = torch.cosine_similarity(e, drawn)
        low, high = (0, 0) if sampler == "beyond" else (0.7, 0.9)
        assert cosines.min() > low - 1e-5
        assert cosines.max() < high + 1e-5

    def test_what_is_beyond_is_orthogonal(self):
        e = states()
        assert torch.cosine_similarity(e, orthogonal_states(e)).abs().max() < 1e-5


def kolmogorov(one, two):
    """Largest difference of two samples' distributions, 0..1."""
    grid = torch.linspace(0.6, 0.9, 100)
    return (torch.searchsorted(one, grid) - torch.searchsorted(two, grid)).abs().max().item() / len(
        one
    )


class TestExpectation:
    def test_it_is_the_limit_of_many_samples(self):
        e, a, place = states(3), states(3), Neighbourhood(0.5, 0.9, 8.0)
        gram, cross = place.moments(e, a)
        many = place.draw(e.repeat(20000, 1), "direct", generator()).double()
        assert relative(many.T @ many / 20000, gram) < 0.02
        assert relative(a.repeat(20000, 1).double().T @ many / 20000, cross) < 0.02
        few = place.draw(e.repeat(20, 1), "direct", generator()).double()
        assert (
            relative(few.T @ few / 20, gram) > 0.1
        )  # the control: few samples leave it half empty

    @pytest.mark.parametrize("channels", [16, 10])
    def test_the_same_beyond(self, channels):
        e = states(3, width=16)
        e[1:, channels:] = 0
        many, few = (
            orthogonal_states(e.repeat(count, 1), generator()).double() for count in (20000, 5)
        )
        assert relative(many.T @ many / 20000, orthogonal_gram(e)) < 0.03
        assert relative(few.T @ few / 5, orthogonal_gram(e)) > 0.3

    def test_at_cosine_one_it_is_the_states_themselves(self):
        e = states(3)
        assert torch.allclose(expected_gram(e, torch.ones(3)), e.double().T @ e.double())


def relative(drawn, expected):
    return ((drawn - expected).norm() / expected.norm()).item()


def edited(e, a, lam_b, overlap=0.0, cosine=0.9, ridge=0.1):
    """The map that is the identity, sent through stage A for one state with the neighbours at one
    cosine.
    """
    equations = Regression(torch.zeros(e.shape[1], e.shape[1]))
    gram, cross = Neighbourhood(cosine, cosine).moments(e, a)
    equations.expect(gram, cross)
    equations.hold(expected_gram(e, torch.full((1,), overlap**2)), lam_b)
    return corrected_weight(torch.eye(e.shape[1], dtype=torch.float64), equations.correction(ridge))


class TestShrinking:
    """Neighbours with one target shrink a map where no term retains it."""

    e, a = torch.eye(WIDTH)[:1] * WIDTH**0.5, torch.eye(WIDTH)[1:2] * WIDTH**0.5
    across = torch.eye(WIDTH, dtype=torch.float64)[5]

    @pytest.mark.parametrize("lam_b", [0, 1, 10])
    def test_by_how_much(self, lam_b):
        w, ridge = edited(self.e, self.a, lam_b), 0.1
        q_e, q_b = WIDTH * (1 - 0.9**2) / (WIDTH - 1), WIDTH / (WIDTH - 1)
        expected = (ridge + lam_b * q_b) / (ridge + lam_b * q_b + q_e)
        assert (w @ self.across).norm().item() == pytest.approx(expected, rel=0.02)

    @pytest.mark.parametrize("lam_b", [1, 10])
    def test_sampled_neighbours_shrink_as_much(self, lam_b):
        equations = Regression(torch.zeros(WIDTH, WIDTH))
        mining = Mining(Neighbourhood(0.9, 0.9), 20000, 20000, "expectation", 1.0, lam_b)
        mining.write(equations, self.e, self.a, 1.0, 0)
        w = corrected_weight(torch.eye(WIDTH, dtype=torch.float64), equations.correction(0.1))
        assert torch.allclose(w, edited(self.e, self.a, lam_b), atol=0.01)

    def test_what_overlaps_the_concept_fights_its_erasure(self):
        def residual(lam_b, overlap):
            w = edited(self.e, self.a, lam_b, overlap)
            return ((w @ self.e[0].double() - self.a[0]).norm() / self.a.norm()).item()

        without = residual(0, 0.0)
        assert without < 0.15
        assert residual(10, 0.3) > 3 * without
        assert residual(100, 0.0) == pytest.approx(without, abs=0.01)


class TestStageA:
    """Section 9 (1) and (2), on the terms that `Mining` writes."""

    @pytest.mark.parametrize("sampler", ["expectation", "direct"])
    def test_nothing_to_erase_leaves_everything(self, sampler):
        equations, empty = Regression(torch.zeros(WIDTH, WIDTH)), states(0)
        Mining(Neighbourhood(0.5, 0.9), 5, 5, sampler, 1.0, 1.0).write(
            equations, empty, empty, 1.0, 0
        )
        old = torch.randn(6, WIDTH)
        assert torch.equal(corrected_weight(old, equations.correction(0.1)), old)

    @pytest.mark.parametrize("sampler", ["direct", "reject"])
    def test_it_is_the_minimiser(self, sampler):
        """Of `J` with its sums over samples written out; least squares on the stacked system say
        the same.
        """
        e, a, old, ridge = states(3), states(3), torch.randn(6, WIDTH).double(), 0.3
        mining = Mining(Neighbourhood(0.5, 0.9), 4, 5, sampler, 1.0, 2.0)
        equations = Regression(torch.zeros(WIDTH, WIDTH))
        mining.write(equations, e, a, 1.0, 7)
        w = corrected_weight(old, equations.correction(ridge)).requires_grad_(True)
        same = torch.Generator().manual_seed(7)
        k = [e, *(mining.neighbourhood.draw(e, sampler, same) for _ in range(4))]
        b = torch.cat([orthogonal_states(e, same) for _ in range(5)]).double()
        rows = torch.cat(
            [
                torch.cat(k).double() / 5**0.5,
                b * (2 / 5) ** 0.5,
                ridge**0.5 * torch.eye(WIDTH).double(),
            ]
        )
        goals = torch.cat(
            [
                a.repeat(5, 1).double() @ old.T / 5**0.5,
                b @ old.T * (2 / 5) ** 0.5,
                ridge**0.5 * old.T,
            ]
        )
        (gradient,) = torch.autograd.grad((rows @ w.T - goals).square().sum(), w)
        assert gradient.abs().max() < 1e-9
        assert torch.allclose(w.T, torch.linalg.lstsq(rows, goals).solution)

    def test_the_order_of_states_and_the_precision_do_not_matter(self):
        e, a, old = states(6), states(6), torch.randn(6, WIDTH)

        def solved(e, a, old):
            equations = Regression(torch.zeros(WIDTH, WIDTH))
            Mining(Neighbourhood(0.5, 0.9), 5, 5, "expectation", 1.0, 1.0).write(
                equations, e, a, 1.0, 0
            )
            return corrected_weight(old, equations.correction(0.1))

        assert torch.allclose(solved(e, a, old), solved(e.flip(0), a.flip(0), old), atol=1e-5)
        assert (
            relative(solved(e, a, old).double(), solved(e.double(), a.double(), old.double()))
            < 1e-3
        )


class TestPositions:
    def test_start_and_template_are_bit_identical(self):
        backbone, place = TinyBackbone(), Neighbourhood(0.5, 0.9)
        prompts = PromptBatch(
            ["a photo of a {}", "{} in style"], ["cat", "star"], ["dog", "heart"]
        ).prompts
        conditioning = backbone.encode(prompts)
        where = conditioning.reads_concept()
        moved = (
            replace_states(conditioning, where, place.draw(conditioning.tokens)).tokens
            != conditioning.tokens
        )
        assert torch.equal(moved.any(dim=2), where)
        assert where.sum(dim=1).tolist() == [16 - 5, 16 - 1]


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((0.0, 0.9), "0 < min_cosine <= max_cosine <= 1; found 0.0 and 0.9"),
        ((0.9, 0.5), "found 0.9 and 0.5"),
        ((0.5, 1.1), "found 0.5 and 1.1"),
        ((0.5, 0.9, 0.0), "max_distance above 0; found 0.0"),
    ],
)
def test_bounds_out_of_range(bounds, words):
    with pytest.raises(ErasureError, match=words):
        Neighbourhood(*bounds)


@pytest.mark.parametrize("use", ["draw", "moments"])
def test_a_distance_that_leaves_no_neighbour(use):
    e, place = torch.eye(4) * 10, Neighbourhood(0.5, 0.92, 3.9)
    with pytest.raises(
        ErasureError, match="max_distance of at least 4.00, where max_cosine 0.92 .* found 3.9"
    ):
        place.draw(e) if use == "draw" else place.moments(e, e)
    assert Neighbourhood(0.5, 0.92, 4.1).draw(e).shape == e.shape  # the control


def test_rejection_gives_up():
    with pytest.raises(
        ErasureError, match="between the cosines 0.7 and 0.7. Widen them, or use the direct sampler"
    ):
        Neighbourhood(0.7, 0.7).draw(states(50), "reject")
    e = states(50)
    assert torch.cosine_similarity(
        e, states_at_cosines(e, torch.full((50,), 0.7))
    ).mean().item() == pytest.approx(0.7)
