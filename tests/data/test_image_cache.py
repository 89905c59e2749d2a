import torch
from trivial import Distillation, quiet_trainer

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.measure import Measure
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.data.image_cache import cached_images
from erasure_lightning.data.image_plan import ImageBatch, ImageRequest


def batch(prompt="a cat", seed=0, size=None):
    return ImageBatch([ImageRequest(prompt, seed, "efficacy", "0", "cat", 2, 1.0)], size)


def drawn(folder, *batches, model="m"):
    """Number of images that are generated, and the images of each batch."""
    count = []

    def draw():
        count.append(1)
        return torch.full((1, 3, 2, 2), len(count) / 7)

    return count, [cached_images(folder, model, s, draw) for s in batches]


def test_equal_shots_are_drawn_once_and_come_back_bit_for_bit(tmp_path):
    count, (first, again) = drawn(str(tmp_path / "new"), batch(), batch())
    assert len(count) == 1
    assert torch.equal(first, again)


def test_other_shots_and_other_models_are_drawn(tmp_path):
    assert len(drawn(str(tmp_path), batch(), batch("a dog"), batch(seed=1), batch(size=32))[0]) == 4
    assert len(drawn(str(tmp_path), batch(), model="other")[0]) == 1


def test_without_a_folder_everything_is_drawn():
    assert len(drawn(None, batch(), batch())[0]) == 2


def test_a_spoiled_file_is_drawn_again(tmp_path):
    drawn(str(tmp_path), batch())
    (spoiled,) = tmp_path.iterdir()
    spoiled.write_bytes(b"half")
    assert len(drawn(str(tmp_path), batch())[0]) == 1
    assert len(drawn(str(tmp_path), batch())[0]) == 0


def test_models_of_another_image_size_draw_their_own(tmp_path):
    cached = {"steps": 2, "seeds": 2, "others": 2, "originals": str(tmp_path / "cache")}
    for number, size in enumerate((32, 16, 16), start=1):
        measure = Measure(show=False)
        trainer = quiet_trainer(default_root_dir=tmp_path, callbacks=[measure])
        model = {"backbone": TinyBackbone(), "image_size": size}
        module = Distillation(concepts=[Concept("cat", "dog")], **model)
        trainer.test(module, PromptData(**cached), verbose=False)
        assert measure.result.estimates["structure"]["distance"]["after"].mean == 0, size
        assert len([*(tmp_path / "cache").iterdir()]) == min(number, 2)
