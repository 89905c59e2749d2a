import pytest

from erasure_lightning.report.privacy import without_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/jane doe/models/sd15", "…/sd15"),
        ("~/models/sd15/", "…/sd15"),
        ("C:\\Users\\jane\\sd15", "…/sd15"),
        ("\\\\host\\share\\sd15", "…/sd15"),
        ("file:///home/jane/sd15", "…/sd15"),
        ("../jane/sd15", "…/sd15"),
        ("scorer at '/home/jane/clip', seed 3", "scorer at '…/clip', seed 3"),
        ("--data.originals=/mnt/x/originals", "--data.originals=…/originals"),
    ],
)
def test_only_the_last_name_of_a_path_remains(text, expected):
    assert without_paths(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "openai/clip-vit-base-patch32",
        "./my-sd15",
        "models/sd15",
        "https://arxiv.org/abs/2308.14761",
        "a cat / dog",
        "and/or",
        "</script>",
        "half...",
        "",
    ],
)
def test_other_texts_are_unchanged(text):
    assert without_paths(text) == text


def test_nested_values_are_replaced():
    value = {"model": {"files": ["/a/b", 3, None], "lr": 1e-5}}
    assert without_paths(value) == {"model": {"files": ["…/b", 3, None], "lr": 1e-5}}
