import base64
import io
import os

import pytest
from PIL import Image
from report_runs import description, write_samples

from erasure_lightning.report import pictures
from erasure_lightning.report.pictures import BUDGET, embed, read_samples


@pytest.fixture
def folder(tmp_path):
    write_samples(tmp_path, description())
    return tmp_path / "samples"


def decoded(embedded):
    return Image.open(io.BytesIO(base64.b64decode(embedded.uri.partition(",")[2])))


def test_pairs_are_read_in_their_order(folder):
    notes = []
    samples = read_samples(folder, notes)
    assert [(s.prompt, s.group, s.seed) for s in samples] == [
        ("a cat", "efficacy", 0), ("a cat", "efficacy", 1), ("a boat", "specificity", 0), ("a boat", "specificity", 1),
    ]  # fmt: skip
    assert samples[0].after == folder / "000-after.png"
    assert notes == []


def test_small_pictures_come_as_they_are(folder):
    path = folder / "000-after.png"
    found, told = embed([path, path])
    assert told == ""
    assert found[path].uri.startswith("data:image/png;base64,")
    assert decoded(found[path]).tobytes() == Image.open(path).convert("RGB").tobytes()


def test_large_ones_are_made_as_small_as_they_must_be(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for path in paths:  # noise, which nothing compresses
        Image.frombytes("RGB", (700, 700), os.urandom(3 * 700 * 700)).save(path)
    found, told = embed(paths)
    assert sum(len(e.uri) for e in found.values()) <= BUDGET
    assert {e.width for e in found.values()} == {512}
    assert decoded(found[paths[0]]).format == "WEBP"
    assert "at most 512 pixels a side, as WebP" in told


def test_nothing_but_pixels_comes_along(folder):
    from PIL.PngImagePlugin import PngInfo

    secret = PngInfo()
    secret.add_text("path", "/home/somebody")
    path = folder / "000-after.png"
    Image.open(path).save(path, pnginfo=secret)
    assert b"somebody" in path.read_bytes()
    assert "path" not in decoded(embed([path])[0][path]).info


def test_what_is_missing_or_broken_is_left_out_and_told(folder):
    (folder / "000-after.png").unlink()
    (folder / "001-before.png").write_bytes((folder / "001-before.png").read_bytes()[:60])
    notes = []
    assert len(read_samples(folder, notes)) == 2
    assert notes == ["2 of 4 pairs of pictures are missing or broken."]


def test_a_list_reaches_nothing_outside_its_folder(folder, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    text = (folder / "samples.csv").read_text()
    (folder / "samples.csv").write_text(text.replace("000-after.png", "../outside.png"))
    notes = []
    assert len(read_samples(folder, notes)) == 3
    assert notes


@pytest.mark.parametrize(
    "content", ["", "prompt,group\na,b\n", "prompt,group,seed,before,after\na,b,c,d,e\n", "\udcff"]
)
def test_another_list_is_none(folder, content):
    (folder / "samples.csv").write_bytes(content.encode(errors="surrogateescape"))
    notes = []
    assert read_samples(folder, notes) == ()
    assert bool(notes) == bool(content)


def test_no_list_is_no_fault(tmp_path):
    assert read_samples(tmp_path, notes := []) == ()
    assert notes == []


def test_even_too_many_are_shown(monkeypatch, folder):
    monkeypatch.setattr(pictures, "BUDGET", 10)
    found, told = embed([folder / "000-after.png"])
    assert found
    assert "64 pixels" in told
