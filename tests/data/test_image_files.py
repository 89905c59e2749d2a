"""Image files of a user, of every mode that PNG and JPEG files have."""

import numpy
import pytest
import torch
from PIL import Image

from erasure_lightning.data.image_files import image_tensor, read_image
from erasure_lightning.errors import ErasureError

#: A ramp from black to white.
GREYS = torch.linspace(0, 1, 256).view(16, 16)


@pytest.mark.parametrize(
    ("kind", "most"), [("uint8", 255), ("uint16", 65535)], ids=["8 bits", "16 bits"]
)
def test_greys_are_the_same_in_any_depth(kind, most, tmp_path):
    values = (GREYS.double() * most).round().numpy().astype(kind)
    Image.fromarray(values).save(tmp_path / "ramp.png")
    read = image_tensor(read_image(tmp_path / "ramp.png"))
    assert torch.allclose(read, GREYS.expand(3, 16, 16), atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_modes_of_colour(mode, tmp_path):
    path = tmp_path / f"half.{'jpg' if mode == 'CMYK' else 'png'}"
    half = numpy.zeros((16, 16, 3), dtype="uint8")
    half[:, 8:] = 255
    Image.fromarray(half).convert(mode).save(path)
    read = image_tensor(read_image(path))
    assert torch.allclose(read, torch.tensor(half).permute(2, 0, 1) / 255, atol=0.02)


@pytest.mark.parametrize(("place", "value"), [(41, 65), (43, 7)], ids=["offset", "type"])
def test_damaged_exif_is_named(place, value, tmp_path):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif.update({0x010E: "hello", 0x0112: 6, 0x011A: (1, 72)})  # title, orientation, resolution
    Image.new("RGB", (4, 4)).save(path, exif=exif)
    assert read_image(path).size == (4, 4)
    content = bytearray(path.read_bytes())
    content[content.index(b"Exif") + place] = value
    path.write_bytes(content)
    with pytest.raises(ErasureError, match=r"photo.jpg cannot be read as an image; it may be"):
        read_image(path)


def test_what_is_transparent_is_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (image_tensor(read_image(tmp_path / "clear.png")) == 1).all()
