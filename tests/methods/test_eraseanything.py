"""EraseAnything: the contract, both losses by hand, the alternation, and whose attention falls."""

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from torch import nn

from erasure_lightning.backbones.conditioning import CONCEPT
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinySD3
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.eraseanything import EraseAnything, reverse_contrast
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.adversary_kinds import StateAdversary
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
BATCH = PromptBatch(
    ["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", "heart"], [0, 1]
)
UNRELATED = ["tree", "car", "house"]


def erase_anything(family=TinyFlux, moved=0.1, **arguments):
    module = EraseAnything(
        concepts=CONCEPTS, backbone=family(), **({"unrelated": UNRELATED} | arguments)
    )
    module.configure_model()
    for parameter in module.trainable().values() if moved else ():
        nn.init.normal_(parameter, std=moved)  # so that student and original differ
    return module


def latents(module):
    shape = module.backbone.latent_shape()
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, *shape, generator=generator), torch.tensor([300.0, 900.0])


def predict(model, module, words):
    x, t = latents(module)
    return model.denoise(x, t, model.encode(BATCH._replace(concepts=words).prompts))


def attend(model, module, words):
    """The last layer's maps ``(B, heads, pixels, L)`` and the words' positions."""
    with model.attention() as maps:
        predict(model, module, words)
    prompts = model.encode(BATCH._replace(concepts=words).prompts)
    return [*maps.values()][-1], prompts.positions(CONCEPT)


def test_contract():
    check_method(EraseAnything, latents=TrajectoryBank(trajectories=2, steps=3))


def test_contract_without_retaining_steps():
    check_method(
        EraseAnything,
        **VARIANT,
        latents=TrajectoryBank(trajectories=2, steps=3),
        retain_weight=0.0,
        contrast_weight=0.0,
    )


@pytest.mark.parametrize(
    ("family", "endings"),
    [
        (TinyFlux, {"attn.add_q_proj", "attn.add_k_proj"}),
        (TinySD3, {"attn.add_q_proj", "attn.add_k_proj"}),
        (TinyBackbone, {"attn2.to_k"}),
    ],
)
def test_adapters_are_on_queries_and_keys_of_the_text(family, endings):
    adapters = erase_anything(family, rank=3).trainable()
    layers = [name.split(".lora_")[0] for name in adapters]
    assert {".".join(layer.split(".")[-2:]) for layer in layers} == endings
    assert {len(down) for name, down in adapters.items() if ".lora_A." in name} == {3}


def test_the_erasing_loss_by_hand():
    module = erase_anything(eta=0.5, attention_weight=0.2)
    words = BATCH.concepts
    anchor = predict(module.original, module, BATCH.anchors)
    concept = predict(module.original, module, words)
    error = predict(module.backbone, module, words) - (1.5 * anchor - 0.5 * concept)
    maps, positions = attend(module.backbone, module, words)
    norms = 0.0
    for row in range(2):
        for k in positions[row].nonzero().flatten():
            norms = norms + maps[row, :, :, k].square().sum(dim=0).sqrt().sum() / 2
    by_hand = error.square().mean() + 0.2 * norms
    loss = module.erasing_loss(noisy(module, *latents(module), BATCH))
    assert torch.allclose(loss, by_hand, rtol=1e-5)


@pytest.mark.parametrize("contrast", [0.7, 0.0], ids=["both terms", "retention alone"])
def test_the_retaining_loss_by_hand(contrast):
    """Beside the contrast the change of predictions is too small to be compared."""
    module = erase_anything(
        retain_weight=0.3,
        contrast_weight=contrast,
        temperature=0.2,
        unrelated=["tree"],
        negatives=1,
    )

    def features(model, words):
        maps, positions = attend(model, module, words)
        rows = zip(maps.mean(dim=1), positions, strict=True)
        return torch.stack([each[:, where].mean(dim=1) for each, where in rows])

    cosines = [
        torch.cosine_similarity(
            features(module.backbone, BATCH.concepts), features(module.original, words)
        )
        for words in (BATCH.concepts, ["tree", "tree"])
    ]
    ratio = (torch.stack(cosines) / 0.2).softmax(dim=0)[0].log().mean()
    change = predict(module.backbone, module, ["tree"] * 2)
    change = change - predict(module.original, module, ["tree"] * 2)
    loss = module.retaining_loss(noisy(module, *latents(module), BATCH))
    by_hand = 0.3 * change.square().mean() + contrast * ratio
    assert torch.allclose(loss, by_hand, rtol=1e-4, atol=0)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_it_says_whether_a_retaining_step_leaves_an_adapter_without_gradient(weight):
    module = erase_anything(retain_weight=weight)
    module.retaining_loss(noisy(module, *latents(module), BATCH)).backward()
    without = [name for name, p in module.trainable().items() if p.grad is None]
    assert bool(without) == module.has_unused == (weight == 0.0)


def test_the_contrast_turns_a_map_from_the_synonym_to_the_unrelated():
    """In the official code the unrelated maps have no part in the gradient's direction."""
    concept = torch.tensor([[1.0, 1.0, 0.2]], requires_grad=True)
    others = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    reverse_contrast(concept, others, 0.07).backward()
    assert concept.grad[0, 0] > 0 > concept.grad[0, 1]


def test_synonyms_are_drawn_from_those_of_the_concept():
    module = erase_anything(synonyms={"cat": ["kitten", "puss"]})
    assert {module._synonym(0) for _ in range(20)} == {"kitten", "puss"}
    assert module._synonym(1) == "star"  # the control: it has none


@pytest.mark.parametrize(("kind", "group"), [("thing", "others"), ("style", "other_styles")])
def test_unrelated_words_are_of_the_concept_s_kind(kind, group):
    """Of few words some twice."""
    concepts = [Concept("cat", kind=kind)]
    module = EraseAnything(concepts=concepts, backbone=TinyFlux(), negatives=500)
    module.configure_model()
    words = module._unrelated_words(0)
    assert len(words) == 500
    assert set(words) == set(getattr(Vocabulary(None, concepts), group))


def test_steps_erase_and_retain_in_turn(monkeypatch):
    steps = []
    for name in ("erasing_loss", "retaining_loss"):
        plain = getattr(EraseAnything, name)
        monkeypatch.setattr(
            EraseAnything,
            name,
            lambda self, batch, name=name, plain=plain: steps.append(name) or plain(self, batch),
        )
    bank = TrajectoryBank(trajectories=2, steps=3)
    quick_fit(erase_anything(moved=0.0, latents=bank), 3)
    assert steps == ["erasing_loss", "retaining_loss", "erasing_loss"]


def test_an_erasing_step_is_at_what_an_adversary_finds():
    adversary = StateAdversary(begin=0, steps=2, radius=0.3)
    module = erase_anything(adversary=adversary)
    batch = noisy(module, *latents(module), BATCH)
    attacked = module.erasing_loss(batch)
    module.adversary = None
    assert not torch.allclose(attacked, module.erasing_loss(batch), rtol=1e-4)


@pytest.mark.parametrize(("weight", "searched"), [(0.1, [2]), (0.0, [1, 3])])
def test_an_adversary_s_share_is_of_the_erasing_steps(weight, searched, monkeypatch):
    """Every second of all steps would be the retaining ones, without a search."""
    steps = []
    adversary = StateAdversary(begin=0, share=0.5, steps=1)
    module = erase_anything(
        moved=0.0,
        adversary=adversary,
        retain_weight=weight,
        contrast_weight=weight,
        latents=TrajectoryBank(trajectories=2, steps=3),
    )
    search = adversary.search
    monkeypatch.setattr(
        adversary, "search", lambda *each: steps.append(module.global_step) or search(*each)
    )
    quick_fit(module, 4)
    assert steps == searched


def test_the_teacher_is_frozen():
    """The official teacher is the student, adapters and all."""
    module = erase_anything()
    before = predict(module.original, module, BATCH.concepts)
    for parameter in module.trainable().values():
        parameter.data.add_(1.0)
    assert torch.equal(predict(module.original, module, BATCH.concepts), before)


def test_attention_to_the_concept_falls_and_to_other_words_less():
    def attention(model, words):
        maps, positions = attend(model, module, words)
        return (maps.mean(dim=1) * positions[:, None]).sum().item()

    bank = TrajectoryBank(trajectories=2, steps=4)
    module = erase_anything(moved=0.0, latents=bank, attention_weight=1.0, eta=0.0, lr=1e-2)
    module = quick_fit(module, 20)
    falls = [
        attention(module.backbone, words) / attention(module.original, words)
        for words in (BATCH.concepts, ["tree", "car"])
    ]
    assert falls[0] < 0.9
    assert falls[0] < falls[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"temperature": 0.0}, "needs temperature above 0; found 0.0"),
        ({"negatives": 4}, "needs at least 4 unrelated words .*; found 3"),
        ({"synonyms": {"tree": ["oak"]}}, "needs synonyms of its concepts; found some of 'tree'"),
        ({"eta": -1.0}, "needs eta of at least 0; found -1.0"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        erase_anything(**arguments)
