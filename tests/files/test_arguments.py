"""Values that are none of an argument's choices, which would be read as another choice."""

from typing import Literal

import pytest
from under_attack import CAT, tiny_target

from erasure_lightning.attacks.benign_fine_tune import BenignFineTune
from erasure_lightning.attacks.runner import attack_concepts
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.arguments import require_choices
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.retention.global_alignment import GlobalSemanticAlignment
from erasure_lightning.testing import quick_fit
from erasure_lightning.training.adversary_kinds import WordAdversary
from erasure_lightning.training.image_sources import GeneratedImages, ImageFolder
from erasure_lightning.training.latent_sources import PureNoise


class Base:
    def __init__(self, *, colour: Literal["red", "blue"] = "red", size: int | str = 1) -> None:
        pass


class Derived(Base):
    def __init__(self, *, edge: Literal["round", 3] | None = None, **kwargs) -> None:
        pass


@pytest.mark.parametrize(
    "arguments",
    [{}, {"colour": "blue", "edge": None, "size": "any"}, {"edge": 3, "other": "round"}],
)
def test_choices_and_what_has_none_pass(arguments):
    require_choices(Derived, arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"edge": "rounds"}, "one of round, 3 as edge; found 'rounds'. Did you mean 'round'?"),
        ({"colour": None}, "one of red, blue as colour; found None."),
    ],
)
def test_others_are_refused(arguments, words):
    with pytest.raises(ErasureError) as caught:
        require_choices(Derived, arguments)
    assert str(caught.value) == f"Derived needs {words}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train": "xs"}, "x, x-strict, u, all, entry, pixels as train; found 'xs'"),
        ({"loss_space": "noise"}, "native, velocity, epsilon, sample as loss_space; found 'noise'"),
        ({"optimizer": "sgd"}, "adam, adamw, adam8bit as optimizer; found 'sgd'"),
        ({"schedule": "linear"}, "constant, cosine as schedule; found 'linear'"),
        ({"erase_from": "anchors"}, "concept, anchor as erase_from; found 'anchors'"),
        ({"base_dtype": "float16"}, "float32, bfloat16, int8 as base_dtype; found 'float16'"),
    ],
)
def test_methods_refuse_them(arguments, words):
    with pytest.raises(ErasureError, match=f"ESD needs one of {words}"):
        ESD(concepts=CAT, backbone=TinyBackbone(), **arguments)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PureNoise("even"), "PureNoise needs one of uniform, .* as times; found 'even'"),
        (lambda: GeneratedImages(of="star"), "concept, anchor as of; found 'star'"),
        (lambda: ImageFolder("images", times="even"), "logit-normal as times; found 'even'"),
        (lambda: WordAdversary(where="words"), "template, all as where; found 'words'"),
        (lambda: _fit(GlobalSemanticAlignment(mode="kl")), "kl_softmax as mode; found 'kl'"),
        (lambda: _attack(BenignFineTune(train="xs")), "everything as train; found 'xs'"),
    ],
)
def test_what_methods_hold_and_attacks_refuse_them(make, words):
    with pytest.raises(ErasureError, match=words):
        make()


def _fit(callback):
    quick_fit(SAGE(concepts=CAT, backbone=TinyBackbone()), 1, callback)


def _attack(attack):
    attack_concepts(attack, tiny_target(), lambda line: None)
