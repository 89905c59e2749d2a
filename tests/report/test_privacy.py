import pytest

from erasure_lightning.report.privacy import without_paths


@pytest.mark.parametrize(
    ("given", "kept"),
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
def test_of_a_path_its_name_remains(given, kept):
    assert without_paths(given) == kept


@pytest.mark.parametrize(
    "text",
    [
        "openai/clip-vit-base-patch32", "./my-sd15", "models/sd15", "https://arxiv.org/abs/2308.14761", "a cat / dog",
        "and/or", "</script>", "half...", "",
    ],
)  # fmt: skip
def test_what_is_no_path_of_the_machine_stays(text):
    assert without_paths(text) == text


def test_it_reaches_into_values_of_any_depth():
    given = {"model": {"files": ["/a/b", 3, None], "lr": 1e-5}}
    assert without_paths(given) == {"model": {"files": ["…/b", 3, None], "lr": 1e-5}}
