"""Domain mining finds words for which a model predicts as for the concept, and no others."""

import pytest
import torch

from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone, TinyXL
from erasure_lightning.concepts.concept import Concept, fill_template
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.training.domain_words import domain_words


def with_synonym(family, word, of):
    """A tiny model that reads ``word`` as it reads ``of``."""
    model = family()
    for tower in model.towers:
        ids = {tower.spell(token[None]): token for token in tower.words()}
        with torch.no_grad():
            tower.table[ids[word]] = tower.table[ids[of]]
    return model.eval()


@pytest.mark.parametrize("family", [TinyBackbone, TinyXL])
def test_a_synonym_is_found_and_nothing_beside_it(family):
    model = with_synonym(family, "k", of="q")
    assert domain_words(model, [Concept("q", "z")], 0.999, 300) == [["k"]]
    assert domain_words(family().eval(), [Concept("q", "z")], 0.999, 300) == [[]]  # the control


@torch.no_grad()
def domain_by_hand(model, name, others, count):
    """The nearest words by meaning, those for which the model predicts most alike first."""

    def phrases(words):
        return [fill_template("a {}", word) for word in words]

    own, summaries = (model.summarize(model.embed(phrases(w))) for w in ([name], others))
    mean = summaries.mean(dim=0)
    nearness = torch.cosine_similarity(summaries - mean, own - mean)
    near = [others[i] for i in nearness.argsort(descending=True)[:count].tolist()]
    t = model.process.at(torch.full((count + 2,), 0.95))
    each = []
    for seed in range(4):
        x = model.noise([seed]).expand(count + 2, -1, -1, -1)
        prompts = model.encode(phrases(["", name, *near]))
        predictions = model.denoise(x, t, prompts).flatten(1)
        directions = predictions[1:] - predictions[0]
        each.append(torch.cosine_similarity(directions[1:], directions[:1]))
    similarities = torch.stack(each).quantile(0.5, dim=0)
    order = similarities.argsort(descending=True).tolist()
    return [near[i] for i in order], similarities[order]


def test_words_and_their_order_by_hand():
    model = TinyBackbone().eval()
    spelled = dict.fromkeys(model.spell(token[None]).strip() for token in model.words())
    excluded = {"q", "z", *Vocabulary(None, [Concept("q", "z")]).others}
    words = [word for word in spelled if word.isalpha() and word not in excluded]
    expected, similarities = domain_by_hand(model, "q", words, 7)
    assert domain_words(model, [Concept("q", "z")], -1.0, 7) == [expected]
    least = similarities[3].item() - 1e-4
    assert domain_words(model, [Concept("q", "z")], least, 7) == [expected[:4]]
    assert similarities[4] < least  # the control


def test_words_of_a_list_are_compared_too():
    model = with_synonym(TinyBackbone, "k", of="q")
    more = ["k k", "q", "z", "K", "m m"]  # the tokenizer splits all but single letters
    ((first, *_),) = domain_words(model, [Concept("q q", "z")], 0.999, 300, more)
    assert first == "k k"
    assert domain_words(model, [Concept("q q", "z")], 0.999, 300) == [[]]  # the control
    assert domain_words(model, [Concept("q q", "z")], 1.5, 300, more) == [[]]


def test_anchors_concepts_and_styles_have_no_part():
    model = with_synonym(TinyBackbone, "k", of="q")
    assert domain_words(model, [Concept("q", "k")], 0.999, 300) == [[]]
    assert domain_words(model, [Concept("q", "z"), Concept("k", "z")], 0.999, 300) == [[], []]
    assert domain_words(model, [Concept("q", "z", kind="style")], 0.999, 300) == [[]]


def test_on_the_world_words_that_draw_the_concept_are_found_though_others_are_nearer():
    concepts = [Concept("skull", "jack-o-lantern"), Concept("rabbit face", "mouse face")]
    more = ["bunny", "bunny rabbit", "barrel", "a bowl of soup", "Mouse Face"]
    skull, rabbit = domain_words(load_backbone("emoji-world"), concepts, 0.85, 300, more)
    assert {"death", "dead", "dying"} <= set(skull)
    assert not {"bone", "head", "devil", "ghost"} & set(skull)  # nearer to it as texts
    assert {"bunny", "bunny rabbit"} <= set(rabbit)  # of the list alone, of several tokens
    assert not {"barrel", "a bowl of soup", "Mouse Face"} & set(rabbit)
    assert not set(more) & set(skull)  # the control
