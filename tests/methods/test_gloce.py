"""GLoCE: the contract, its statistics and maps by hand, and gates that know the concept."""

import pytest
import torch
from contracts import VARIANT
from lightning.pytorch.callbacks import Callback
from torch.nn.functional import normalize

from erasure_lightning.adapters.base import ADAPTER_CHILD
from erasure_lightning.adapters.gated_low_rank import GatedLowRank, gate_scores
from erasure_lightning.adapters.kinds import adapter_parameters
from erasure_lightning.backbones.tiny import TinyBackbone, TinyPixArt
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.gloce import GLoCE, Moments, at_scales, leading
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.retention.unconditional_drift import UnconditionalDrift
from erasure_lightning.testing import check_method, quick_fit

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
ARGUMENTS = {"images": 2, "rollout_steps": 2, "neighbours": 2}


def gloce(family=TinyBackbone, concepts=CONCEPTS, **arguments):
    module = GLoCE(concepts=concepts, backbone=family(), **(ARGUMENTS | arguments))
    module.configure_model()
    return module


@pytest.mark.parametrize("arguments", [{}, {"rank": 3, "anchor_rank": 2, "gate_rank": 2}], ids=str)
def test_contract(arguments):
    few = ARGUMENTS | {"rollout_steps": 1}
    check_method(GLoCE, **(VARIANT if arguments else {}), **(few | arguments))


class TestStatistics:
    def test_moments_are_mean_and_covariance(self):
        rows, point = torch.randn(50, 6).double(), torch.randn(6).double()
        moments = Moments.empty(6, rows.device)
        for part in rows.split(20):
            moments.add(part)
        assert torch.allclose(moments.mean, rows.mean(dim=0))
        assert torch.allclose(moments.around(moments.mean), rows.T.cov(correction=0))
        away = rows - point
        assert torch.allclose(moments.around(point), away.T @ away / 50)

    def test_scales_are_means_of_squares_of_pixels(self):
        outputs = torch.arange(16.0).view(1, 16, 1)
        scales = at_scales(outputs).flatten().tolist()
        assert scales == [*map(float, range(16)), 2.5, 4.5, 10.5, 12.5, 7.5]
        assert len(at_scales(torch.zeros(3, 256, 2))) == 3 * (256 + 64 + 16 + 4)  # no fifth

    def test_leading_vectors(self):
        vectors = torch.linalg.qr(torch.randn(5, 5).double())[0]
        values = torch.tensor([3.0, 5.0, 0.1, 4.0, 1.0]).double()
        basis = leading(vectors @ values.diag() @ vectors.T, 2)
        assert torch.allclose((basis @ vectors)[:, [1, 3]].abs(), torch.eye(2).double(), atol=1e-9)

    def test_they_are_of_the_prediction_with_the_prompt(self):
        """Guidance evaluates the empty prompt in the same batch."""
        module = gloce()

        def means(prompt, guidance):
            module.guidance = guidance
            return torch.cat([m.mean for m in module.moments(prompt).values()])

        module.rollout_steps = 1  # later latents depend on the guidance
        assert torch.allclose(means("a cat", 7.5), means("a cat", 1.0), atol=1e-5)
        assert not torch.allclose(means("a cat", 7.5), means("", 1.0), atol=1e-3)  # the control
        module.rollout_steps = 2
        assert not torch.allclose(means("a cat", 7.5), means("a cat", 1.0), atol=1e-5)

    def test_they_are_of_every_pixel_step_and_image_of_the_seed(self):
        module = gloce(images=3, rollout_steps=2)
        own, other = (m.moments("a cat") for m in (module, gloce(images=3, seed=1)))
        pixels = []
        module.visit("a cat", lambda name, outputs: pixels.append(len(at_scales(outputs)) // 3))
        assert sum(each.count for each in own.values()) == 3 * sum(pixels)
        assert not any(torch.allclose(own[n].mean, other[n].mean, atol=1e-5) for n in own)


class TestAdapter:
    def adapter(self, concepts=2, width=6):
        layer = torch.nn.Identity()
        layer.out_dim = width
        return GatedLowRank(layer, concepts=concepts, rank=2, gate_rank=2)

    def test_it_begins_as_the_identity(self):
        adapter, h = self.adapter(), torch.randn(2, 4, 6)
        assert adapter.is_identity()
        assert torch.equal(adapter(h, h), h)

    def test_by_hand(self):
        """Each pixel has the map of the concept whose gate is most open."""
        torch.manual_seed(0)
        adapter, h = self.adapter(), torch.randn(2, 16, 6)
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter)
        adapter.centre.data.zero_()
        adapter.slope.data = torch.tensor([1.0, 1.0])
        new = adapter(h, h)
        chosen = set()
        for image in range(2):
            for pixel in range(16):
                own = h[image, pixel]
                gates, mapped = [], []
                for c in range(2):
                    away = own - adapter.gate_mean[c]
                    score = (adapter.gate[c] @ (away / away.norm())).square().sum()
                    gates.append((adapter.slope[c] * (score - adapter.centre[c])).sigmoid())
                    inner = adapter.down[c] @ (own - adapter.mean[c])
                    mapped.append(adapter.bias[c] + adapter.up[c].T @ inner)
                c = int(gates[1] > gates[0])
                chosen.add(c)
                by_hand = (1 - gates[c]) * own + gates[c] * mapped[c]
                assert torch.allclose(new[image, pixel], by_hand, atol=1e-5)
        assert chosen == {0, 1}


class NearPrompts(Callback):
    """Remembers what a fit retains, and the prompts near the first concept."""

    def on_train_end(self, trainer, module):
        self.retained = [callback.retained for callback in module.retention]
        self.prompts = module.near_prompts(CONCEPTS[0])


class TestSolution:
    def test_the_maps_by_hand(self):
        module = gloce(rank=2, anchor_rank=1)
        solved = module.solve_concept(CONCEPTS[0])
        own, anchor = (module.moments(f"a photo of a {word}") for word in ("cat", "dog"))
        name = next(iter(own))
        values = {key: solved[f"{name}.{ADAPTER_CHILD}.{key}"] for key in ("down", "up", "bias")}
        v, v_a = (leading(m[name].around(m[name].mean), r) for m, r in ((own, 2), (anchor, 1)))
        mapped = torch.eye(v.shape[1]).double() - v.T @ v
        assert torch.allclose(values["up"].T @ values["down"], v_a.T @ v_a @ mapped, atol=1e-8)
        assert torch.allclose(values["bias"], anchor[name].mean)
        # What varies in the concept is removed: the control is what varies in nothing.
        assert (values["down"] @ v.T).abs().max() < 1e-8
        assert values["down"].norm() > 0.1

    def test_the_gates_by_hand(self):
        module = gloce(gate_rank=2, threshold=1.5, neighbours=3)
        solved = module.solve_concept(CONCEPTS[0])
        own, anchor = (module.moments(f"a photo of a {word}") for word in ("cat", "dog"))
        name = next(iter(own))
        values = {
            key: solved[f"{name}.{ADAPTER_CHILD}.{key}"]
            for key in ("mean", "gate", "gate_mean", "centre", "slope")
        }
        assert torch.allclose(values["mean"], own[name].mean)
        assert torch.allclose(values["gate_mean"], anchor[name].mean)
        basis = leading(own[name].around(anchor[name].mean), 2)
        assert torch.allclose(values["gate"].T @ values["gate"], basis.T @ basis, atol=1e-8)
        scores = []

        def visitor(layer, outputs):
            if layer == name:
                away = normalize(outputs.double() - anchor[name].mean, dim=2)
                scores.extend((away @ basis.T).square().sum(dim=2).amax(dim=1))

        for prompt in module.near_prompts(CONCEPTS[0]):
            module.visit(prompt, visitor)
        scores = torch.stack(scores)
        assert len(scores) == 3 * 2 * 2  # neighbours, images and steps
        assert torch.allclose(values["centre"], scores.mean() + 1.5 * scores.std(), atol=1e-6)
        width = 0.001 * 1.5
        assert torch.allclose((values["slope"] * width).sigmoid(), torch.tensor(0.99).double())

    def test_gates_are_nearly_closed_for_neighbours_and_open_wider_for_the_concept(self):
        module = quick_fit(
            gloce(concepts=CONCEPTS[:1], threshold=1.0, rollout_steps=4, images=4), 1
        )
        adapters = {
            name.removesuffix(f".{ADAPTER_CHILD}"): adapter
            for name, adapter in module.backbone.named_modules()
            if isinstance(adapter, GatedLowRank)
        }

        def share_open(prompt):
            """Of images and steps with a pixel whose gate is more than half open."""
            active = []

            def visitor(name, outputs):
                own = adapters[name]
                scores = gate_scores(outputs.unsqueeze(2), own.gate_mean, own.gate)
                active.append((scores > own.centre).flatten(1).any(dim=1).float())

            module.visit(prompt, visitor)
            return torch.cat(active).mean().item()

        near = module.near_prompts(CONCEPTS[0])
        assert len(near) == 2
        assert max(map(share_open, near)) < 0.5
        assert share_open("a photo of a cat") > max(map(share_open, near))

    def test_neighbours_are_near_and_no_concept_is_one(self):
        module = gloce(neighbours=200)
        prompts = module.near_prompts(CONCEPTS[0])
        assert not {"a photo of a cat", "a photo of a star"} & set(prompts)
        assert gloce().near_prompts(CONCEPTS[0]) == prompts[:2]
        own, *others = module._first_states(["a photo of a cat", *prompts])
        cosines = [(own * other).sum(dim=1).mean().item() for other in others]
        assert cosines == sorted(cosines, reverse=True)
        assert cosines[0] > cosines[-1]  # the control

    def test_neighbours_of_a_style_are_styles(self):
        style = Concept("Van Gogh", kind="style")
        module = gloce(concepts=[style])
        words = module.candidates(style)
        assert "Monet" in words or "Claude Monet" in words
        assert not set(words) & set(module.candidates(CONCEPTS[0]))

    def test_what_callbacks_retain_takes_their_place(self):
        near = NearPrompts()
        quick_fit(gloce(), 1, LocalNoisePreservation(prompts=["a tree", "a car"]), near)
        assert set(near.prompts) == {"a tree", "a car"}

    def test_the_empty_prompt_is_no_neighbour(self):
        """`UnconditionalDrift` retains it, and would leave the gates without another."""
        near = NearPrompts()
        quick_fit(gloce(), 1, UnconditionalDrift(), near)
        assert near.retained == [[""]]
        assert near.prompts == gloce().near_prompts(CONCEPTS[0])

    @pytest.mark.parametrize(("family", "first"), [(TinyBackbone, 1), (TinyPixArt, 0)])
    def test_words_are_compared_from_the_first_on(self, family, first):
        """T5 has no start token."""
        module = gloce(family)
        states = module.original.encode(["cat"]).tokens[:, first : first + 8]
        assert torch.allclose(module._first_states(["cat"]), normalize(states, dim=2))

    def test_concepts_are_stacked(self):
        both, one = gloce().solve(), gloce(concepts=CONCEPTS[1:]).solve()
        assert both.keys() == set(adapter_parameters(gloce().backbone))
        bias = [name for name in both if name.endswith("bias")]
        assert all(torch.allclose(both[name][1], one[name][0]) for name in bias)
        assert not torch.allclose(both[bias[0]][0], one[bias[0]][0])  # the control


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": 0}, "GLoCE needs images of at least 1; found 0"),
        ({"anchor_rank": 99}, "GLoCE needs anchor_rank of at most 16; found 99"),
        ({"threshold": 0.0}, "GLoCE needs threshold above 0; found 0.0"),
        ({"template": "a photo"}, r"GLoCE needs \{\} in its template .* found 'a photo'"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        gloce(**arguments)
