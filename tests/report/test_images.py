import base64
import io
import os

import pytest
from PIL import Image
from report_runs import description, write_images

from erasure_lightning.report import images
from erasure_lightning.report.images import embed_images, is_readable_image, read_image_pairs


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, description())
    return tmp_path / "samples"


def decoded(embedded):
    return Image.open(io.BytesIO(base64.b64decode(embedded.uri.partition(",")[2])))


def test_pairs_are_read_in_their_order(folder):
    notes = []
    pairs = read_image_pairs(folder, notes)
    assert [(pair.prompt, pair.group, pair.seed) for pair in pairs] == [
        ("a cat", "efficacy", 0),
        ("a cat", "efficacy", 1),
        ("a boat", "specificity", 0),
        ("a boat", "specificity", 1),
    ]
    assert pairs[0].after == folder / "000-after.png"
    assert notes == []


def test_small_images_are_embedded_in_full_size(folder):
    path = folder / "000-after.png"
    embedded, sentence = embed_images([path, path])
    assert sentence == ""
    assert embedded[path].uri.startswith("data:image/png;base64,")
    assert decoded(embedded[path]).tobytes() == Image.open(path).convert("RGB").tobytes()


def test_large_images_are_scaled_down_to_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_MAX_TOTAL_BYTES", images._MAX_TOTAL_BYTES // 6)
    paths = [tmp_path / f"{i}.png" for i in range(2)]  # as twelve in the whole
    for path in paths:  # noise cannot be compressed
        Image.frombytes("RGB", (700, 700), os.urandom(3 * 700 * 700)).save(path)
    embedded, sentence = embed_images(paths)
    assert sum(len(image.uri) for image in embedded.values()) <= images._MAX_TOTAL_BYTES
    assert {image.width for image in embedded.values()} == {512}
    assert decoded(embedded[paths[0]]).format == "WEBP"
    assert "at most 512 pixels a side, as WebP" in sentence


def test_metadata_of_an_image_is_left_out(folder):
    from PIL.PngImagePlugin import PngInfo

    metadata = PngInfo()
    metadata.add_text("path", "/home/somebody")
    path = folder / "000-after.png"
    Image.open(path).save(path, pnginfo=metadata)
    assert b"somebody" in path.read_bytes()
    assert "path" not in decoded(embed_images([path])[0][path]).info


def test_missing_or_broken_images_are_left_out_with_a_note(folder):
    (folder / "000-after.png").unlink()
    (folder / "001-before.png").write_bytes((folder / "001-before.png").read_bytes()[:60])
    notes = []
    assert len(read_image_pairs(folder, notes)) == 2
    assert notes == ["2 of 4 pairs of images are missing or broken."]


def test_a_png_whose_chunks_are_broken_is_left_out(folder):
    """Pillow raises a SyntaxError for it."""
    file = io.BytesIO()
    Image.frombytes("RGB", (16, 16), bytes(range(256)) * 3).save(file, "PNG")
    length = file.getvalue().index(b"IDAT") - 1  # its last byte
    content = bytearray(file.getvalue())
    assert is_readable_image(folder / "000-after.png")
    content[length] -= 8
    (folder / "000-after.png").write_bytes(content)
    assert not is_readable_image(folder / "000-after.png")


def test_a_list_cannot_name_files_outside_its_folder(folder, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    text = (folder / "samples.csv").read_text()
    (folder / "samples.csv").write_text(text.replace("000-after.png", "../outside.png"))
    notes = []
    assert len(read_image_pairs(folder, notes)) == 3
    assert notes


@pytest.mark.parametrize(
    "content", ["", "prompt,group\na,b\n", "prompt,group,seed,before,after\na,b,c,d,e\n", "\udcff"]
)
def test_an_unreadable_list_is_left_out(folder, content):
    (folder / "samples.csv").write_bytes(content.encode(errors="surrogateescape"))
    notes = []
    assert read_image_pairs(folder, notes) == ()
    assert bool(notes) == bool(content)


def test_the_list_may_be_missing(tmp_path):
    assert read_image_pairs(tmp_path, notes := []) == ()
    assert notes == []


def test_images_of_the_smallest_size_are_always_embedded(monkeypatch, folder):
    monkeypatch.setattr(images, "_MAX_TOTAL_BYTES", 10)
    embedded, sentence = embed_images([folder / "000-after.png"])
    assert embedded
    assert "64 pixels" in sentence
