from pathlib import Path

import pytest

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts import prompt_lists
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.prompt_lists import (
    PROMPT_LISTS,
    read_prompt_list,
    without_concepts,
)
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import folded
from erasure_lightning.methods.uce import UCE
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.testing import quick_fit


@pytest.mark.parametrize("name", ["things", "artists", "roles", "captions"])
def test_a_shipped_list_has_a_hundred_prompts_and_a_licence(name):
    prompts = read_prompt_list(name, "A test")
    assert len({folded(prompt) for prompt in prompts}) == len(prompts) == 100
    header = (prompt_lists._FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()[:2]
    assert all(line.startswith("# ") for line in header)
    assert "CC0" in header[1]


def test_english_words_have_their_sources_beside_them():
    words = read_prompt_list("english", "A test")
    assert len(set(words)) == len(words) == 20840
    assert {"bunny", "toadstool", "corpse"} <= set(words)  # of several tokens in the emoji world
    assert all(word.isalpha() and word.islower() for word in words)
    first, second, *_ = (prompt_lists._FOLDER / "english.txt").read_text().splitlines()
    notices = (Path(__file__).parents[2] / "THIRD_PARTY_NOTICES.md").read_text()
    for source in ("SCOWL", "WordNet"):
        assert source in first
        assert source in notices
    assert "Kevin Atkinson" in second


def test_every_shipped_list_is_named():
    files = prompt_lists._FOLDER.glob("*.txt")
    assert sorted(PROMPT_LISTS) == sorted(file.stem for file in files)


def test_a_file_goes_before_a_list_of_its_name(folder):
    (folder / "things").write_text("1\n")
    assert read_prompt_list("things", "A test") == ["1"]


def test_comments_of_a_file_are_no_prompts_as_in_shipped_lists(folder):
    (folder / "own.txt").write_text("# mine\na cat\n  # more\na dog # no comment\n")
    assert read_prompt_list("own.txt", "A test") == ["a cat", "a dog # no comment"]
    (folder / "none.txt").write_text("# mine\n")
    with pytest.raises(ErasureError, match=r"none\.txt holds none\. Lines that begin with #"):
        read_prompt_list("none.txt", "A test")


def test_what_is_neither_a_list_nor_a_file_is_refused():
    message = "one of the lists things, artists, roles, captions, english, or a text file of "
    message += "prompts; thngs"
    with pytest.raises(ErasureError, match=message):
        read_prompt_list("thngs", "A test")


def test_a_file_is_read_in_the_encoding_of_its_mark(folder):
    for name, encoding in {"plain": "utf-8", "marked": "utf-8-sig", "wide": "utf-16"}.items():
        (folder / name).write_bytes("a caf\xe9\n".encode(encoding))
        assert read_prompt_list(name, "A test") == ["a caf\xe9"]


def test_a_file_in_another_encoding_is_refused_by_name(folder):
    (folder / "old.txt").write_bytes("a house\na caf\xe9\n".encode("cp1252"))
    with pytest.raises(ErasureError, match=r"^A test needs .*old\.txt needs to be UTF-8; .*line 2"):
        read_prompt_list("old.txt", "A test")


def test_prompts_that_name_a_concept_or_its_domain_are_left_out():
    concept = Concept("van gogh", domain=["starry night"])
    prompts = ["Vincent van Gogh", "a Starry Night", "Claude Monet", "two van Goghs"]
    assert without_concepts(prompts, [concept]) == ["Claude Monet"]


@pytest.mark.parametrize(
    ("name", "named", "others"),
    [
        ("cat", ["cats on a sofa", "a CAT"], ["a scatter of leaves"]),
        ("cats", ["a cat"], ["a caterpillar"]),
        ("cherries", ["a cherry"], ["a cheer"]),
        ("<sks>", ["a photo of <sks>", "<sks> here"], ["a photo of sks"]),
        ("C++", ["C++ code"], ["C code"]),
        ("猫", ["一只猫在睡觉"], ["一只狗"]),
        ("cat", ["一只cat在睡觉"], ["一只scatter"]),
    ],
)
def test_a_name_is_found_in_either_number_and_whatever_its_signs(name, named, others):
    assert without_concepts([*named, *others], [Concept(name)]) == others


@pytest.mark.parametrize("concepts", [[], [Concept("star", domain=["", "\u200b"])]])
def test_what_has_no_words_is_in_no_prompt(concepts):
    prompts = ["a cat, a dog", "", "an s"]
    assert without_concepts(prompts, concepts) == prompts


@pytest.mark.parametrize(("prompts", "expected"), [("things", 99), (["a cat"] * 3, 3)])
def test_a_callback_retains_a_list_without_the_concept(folder, prompts, expected):
    """Prompts of the user's own are retained as they are."""
    callback = LocalNoisePreservation(prompts=prompts)
    quick_fit(UCE(concepts=[Concept("cat", "dog")], backbone=TinyBackbone()), 1, callback)
    assert len(callback.retained) == expected
