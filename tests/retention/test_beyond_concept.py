"""The beyond-concept term with other methods; what every term promises is in test_terms.py."""

import pytest
import torch
from trivial import Distillation

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.methods.realera import RealEraClosedForm
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.retention.beyond_concept import BeyondConceptRegularization
from erasure_lightning.testing import edit_of, quick_fit
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.neighbours import orthogonal_states

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]


def module(method=Distillation, **arguments):
    method_module = method(concepts=CONCEPTS, backbone=TinyBackbone(), **arguments)
    method_module.configure_model()
    return method_module


def ready(owner):
    callback = BeyondConceptRegularization()
    callback.prepare(owner)
    return callback


def test_zero_at_the_original_and_more_behind_it():
    owner = module()
    callback = ready(owner)
    assert callback.term(owner) == 0
    for parameter in owner.editable().values():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    assert callback.term(owner) > 1e-6


@pytest.mark.parametrize("count", [2, 7])
def test_its_latents_are_as_many_as_its_batch(count, monkeypatch):
    owner = module()
    callback = BeyondConceptRegularization(batch_size=count)
    callback.prepare(owner)
    drawn = []
    denoise = owner.backbone.denoise
    monkeypatch.setattr(
        owner.backbone,
        "denoise",
        lambda x, *arguments: drawn.append(len(x)) or denoise(x, *arguments),
    )
    callback.term(owner)
    assert drawn == [count]


def test_it_holds_predictions_with_any_gradient_method():
    free, held = (module(lr=3e-3, schedule="cosine") for _ in range(2))
    quick_fit(free, 10)
    quick_fit(held, 10, BeyondConceptRegularization(weight=10.0))

    def drift(owner):
        torch.manual_seed(0)
        return ready(owner).term(owner)

    assert drift(held) < 0.7 * drift(free)


def test_where_only_text_is_edited_it_says_so():
    with pytest.warns(UserWarning, match="SAGE edits no denoiser: it will stay at 0"):
        quick_fit(module(SAGE, check_steps=0, warmup=1), 1, BeyondConceptRegularization())


class Keeping(ClosedFormErasure):
    """Redirects end-of-text states and keeps what callbacks hold."""

    def solve(self):
        ends = [
            self.original.summarize(self.original.embed(w))
            for w in (["cat", "star"], ["dog", "heart"])
        ]
        return self.solve_each(lambda equations, source: equations.redirect(*ends), ridge=0.1)


def test_a_closed_form_holds_what_is_beyond():
    free, held = module(Keeping), module(Keeping)
    quick_fit(free, 1)
    quick_fit(held, 1, BeyondConceptRegularization(weight=30.0))

    def moved(owner):
        elsewhere = orthogonal_states(owner.original.encode(["a cat", "a star"]).tokens)
        layers = owner.original.text_layers()
        return sum((elsewhere @ (w - layers[n.removesuffix(".weight")].weight).T).square().mean()
                   for n, w in owner.editable().items())  # fmt: skip

    assert moved(held) < 0.7 * moved(free)


def test_it_is_the_term_of_realera():
    own = quick_fit(module(RealEraClosedForm, beyond_weight=3.0), 1)
    borrowed = quick_fit(
        module(RealEraClosedForm, beyond=0), 1, BeyondConceptRegularization(weight=3.0)
    )
    without = quick_fit(module(RealEraClosedForm, beyond=0), 1)
    ours, theirs, none = (edit_of(method_module) for method_module in (own, borrowed, without))
    assert all(torch.allclose(ours[n], theirs[n], atol=1e-5) for n in ours)
    assert not any(torch.allclose(ours[n], none[n], atol=1e-3) for n in ours)
