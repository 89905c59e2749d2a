"""SAFREE: the contract, its equations by hand, masked prompts, and what stays as it was."""

import pytest
import torch
from recognition import KEPT, recognised, recognised_before
from shipped import numbers
from torch.nn.functional import cosine_similarity

from erasure_lightning import apply_edit, erase
from erasure_lightning.adapters.base import adapters_of
from erasure_lightning.adapters.subspace_projection import orthonormal_basis
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinyXL
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.safree import SAFREE
from erasure_lightning.testing import check_method, quick_fit

CONCEPTS = [Concept("cat", "dog"), Concept("star")]


def test_contract():
    check_method(SAFREE)


def rule(**arguments):
    return quick_fit(SAFREE(concepts=CONCEPTS, backbone=TinyBackbone(), **arguments), 1)


def projection(columns):
    """The matrix onto the span of columns, as the official code writes it."""
    return columns @ torch.linalg.pinv(columns.T @ columns) @ columns.T


@torch.no_grad()
def masked_summaries(model, prompt):
    """States at the end of text of a prompt with each word's id set to 0 in turn."""
    tower = model.towers[0]
    ids = tower.embed([prompt], model.dtype).ids
    end = int((ids[0] == tower.tokenizer.eos_token_id).int().argmax())
    masked = ids.repeat(end - 1, 1)
    for i in range(end - 1):
        masked[i, i + 1] = 0
    return tower.model(input_ids=masked).last_hidden_state[:, end].double(), end


def test_its_equations_by_hand():
    module = rule(steepness=3.0, threshold=0.4)
    names = module.original.encode(["cat", "star"]).summary.double()
    outside = torch.eye(names.shape[1]).double() - projection(names.T)
    for prompt in ("a cat in a house", "a photo of a tree", "star"):
        before = module.original.encode([prompt]).tokens[0].double()
        summaries, end = masked_summaries(module.original, prompt)
        projected = before @ projection(summaries.T) @ outside
        cosines = cosine_similarity(before[: end + 1], projected[: end + 1], dim=1)
        share = torch.sigmoid(3.0 * (1 - cosines.mean() - 0.4))
        distances = (summaries @ outside).norm(dim=1)
        expected = before.clone()
        for i in range(1, end):
            others = torch.cat((distances[: i - 1], distances[i:])).mean()
            if not distances[i - 1] < 1.01 * others:
                expected[i] += share * (projected[i] - before[i])
        after = module.backbone.encode([prompt]).tokens[0].double()
        assert torch.allclose(after, expected, atol=1e-4)
        assert not torch.allclose(after, before, atol=1e-3)  # something is a trigger


@torch.no_grad()
def test_phrases_span_the_subspace_beside_the_names():
    module = SAFREE(concepts=CONCEPTS, backbone=TinyBackbone(), phrases=["a red car"])
    module.configure_model()
    spanning = module.original.encode(["cat", "star", "a red car"]).summary.double()
    for basis in module.solve().values():
        assert torch.allclose(basis.T @ basis, projection(spanning.T), atol=1e-6)


@torch.no_grad()
def test_the_rest_of_a_batch_and_the_empty_prompt_change_nothing():
    module = rule(filter=False)
    model = module.backbone
    prompts = ["a cat", "", "a photo of a tree"]
    both = model.encode(prompts)
    assert torch.equal(both.tokens[1], module.original.encode([""]).tokens[0])
    for row, prompt in ((0, "a cat"), (2, "a photo of a tree")):
        assert torch.allclose(both.tokens[row], model.encode([prompt]).tokens[0], atol=1e-5)
    assert torch.allclose(both.summary, module.original.encode(prompts).summary)


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["a cat", "a cat in a house"])
def test_with_the_tail_all_states_behind_a_trigger_are_outside_the_subspace(prompt):
    basis = orthonormal_basis(rule().original.encode(["cat", "star"]).summary)
    changed, inside = {}, {}
    for tail in (False, True):
        module = rule(filter=False, tail=tail)
        states = module.backbone.encode([prompt]).tokens[0]
        changed[tail] = (states != module.original.encode([prompt]).tokens[0]).any(dim=1)
        inside[tail] = (states.double() @ basis.mT).abs().amax(dim=1)
    first = int(changed[False].int().argmax())
    assert changed[False].any()
    assert not changed[False][first:].all()  # the control
    assert changed[True].tolist() == [i >= first for i in range(len(changed[True]))]
    assert inside[True][first:].max() < 1e-4 < 1e-2 < inside[False][first:].max()


@torch.no_grad()
def test_the_only_word_of_a_prompt_is_a_trigger_if_it_is_near_the_concepts():
    module = rule(filter=False, alpha=0.5)
    before, after = (m.encode(["cat", "tree"]).tokens for m in (module.original, module.backbone))
    assert not torch.allclose(after[0], before[0], atol=1e-3)
    assert torch.equal(after[1], before[1])  # the control


def test_embeddings_that_are_no_words_meet_the_rule_and_pass_gradients():
    module = rule(filter=False)
    (embedded,) = module.backbone.embed(["a cat in a house"])
    soft = embedded.embeddings.clone()
    soft[:, 2] = torch.randn_like(soft[:, 2])
    soft.requires_grad_()
    prompts = (type(embedded)(soft, embedded.ids, embedded.roles),)
    tokens = module.backbone.contextualize(prompts).tokens
    assert not torch.allclose(tokens, module.original.contextualize(prompts).tokens, atol=1e-3)
    tokens.square().sum().backward()
    assert soft.grad.isfinite().all()
    assert soft.grad[:, 2].any()


@torch.no_grad()
def test_it_warns_of_other_states_as_with_clip_skip_on_which_it_does_not_act(recwarn):
    """As stock pipelines call the text encoder for ``clip_skip``."""
    encoder = rule(filter=False).backbone.to_pipeline().text_encoder
    ids = torch.arange(1, 17).unsqueeze(0)

    def warned(**arguments):
        encoder(ids, attention_mask=None, **arguments)
        return any("Leave clip_skip out" in str(each.message) for each in recwarn.list)

    assert not warned()  # the control
    assert warned(output_hidden_states=True)


@torch.no_grad()
def test_a_token_of_textual_inversion_is_a_word_like_others():
    """Also where a config is of 2022, by which the end of text has the largest id."""
    generator = torch.Generator().manual_seed(0)
    learned = {"<style>": torch.randn(1, 32, generator=generator)}
    states = {}
    for number in (None, 2):
        pipeline = TinyBackbone().to_pipeline()
        plain = TinyBackbone().to_pipeline()
        erase(pipeline, "cat", "SAFREE", filter=False, alpha=-1.0, progress_bar=False)
        for each in (pipeline, plain):
            config = each.text_encoder.config
            config.eos_token_id = number or config.eos_token_id
            each.load_textual_inversion(learned, token="<style>")
        ids = pipeline.tokenizer("a <style> house", padding="max_length", return_tensors="pt")
        encoded = [each.text_encoder(ids.input_ids)[0] for each in (pipeline, plain)]
        changed = (encoded[0] - encoded[1]).abs().amax(dim=2)[0] > 1e-3
        assert changed.tolist() == [False, True, True, True] + 12 * [False]
        states[number] = encoded[0]
    assert torch.equal(states[None], states[2])


def test_a_cached_prompt_is_encoded_again_at_another_strength():
    model = rule(filter=False).backbone.requires_grad_(False)
    whole = model.encode(["a cat"]).tokens
    adapter = model.towers[0].model.adapter
    adapter.strength = 0.5
    half = model.encode(["a cat"]).tokens
    adapter.strength = 1.0
    assert not torch.allclose(whole, half, atol=1e-3)
    assert torch.equal(model.encode(["a cat"]).tokens, whole)


@pytest.mark.parametrize("family", [TinyXL, TinyFlux])
@pytest.mark.parametrize("transfer", [False, True])
def test_a_pipeline_of_the_same_encoder_that_reads_other_states_is_refused(family, transfer):
    edit = erase(TinyBackbone().to_pipeline(), "cat", SAFREE, progress_bar=False)
    encoder = TinyBackbone().to_pipeline().text_encoder
    pipeline = family().to_pipeline()
    pipeline.text_encoder = encoder
    words = "needs a pipeline that reads the last states of one text encoder"
    with pytest.raises(ErasureError, match=f"{words}.*{type(pipeline).__name__}"):
        apply_edit(edit, pipeline, transfer=transfer)
    assert not adapters_of(encoder)
    other = TinyBackbone(seed=1).to_pipeline()  # another denoiser, which reads the same states
    other.text_encoder = encoder
    apply_edit(edit, other, transfer=transfer)
    assert adapters_of(encoder)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_leaves_half_of_the_rest_at_least():
    cigarette = [Concept("cigarette", "lollipop")]
    module = quick_fit(
        SAFREE(backbone="emoji-world", concepts=cigarette, **numbers("safree")), steps=1
    )
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) >= 0.5
