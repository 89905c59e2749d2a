import csv

import pytest
import torch
from PIL import Image
from trivial import Redirection, quiet_trainer

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.image_writer import MANIFEST_COLUMNS, ImageWriter
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.data.image_grid import to_pil
from erasure_lightning.data.image_plan import read_prompts
from erasure_lightning.errors import ErasureError

ROWS = [
    (40, "a cat, close up", 7),
    (3, 'a "small" dog', 8),
    (12, "the star\nin a car", 9),
    (5, "a cat, close up", 9),
]


def predict(folder, rows=ROWS, image_batch_size=3, size=None, **kwargs):
    prompts = folder.parent / f"{folder.name}.csv"
    with prompts.open("w", newline="") as file:
        csv.writer(file).writerows([("case_number", "prompt", "evaluation_seed"), *rows])
    trainer = quiet_trainer(
        default_root_dir=folder,
        callbacks=[ImageWriter()],
        **kwargs,
    )
    sampling = {"steps": 3, "guidance": 2.5, "image_size": size}
    data = PromptData(prompts=str(prompts), image_batch_size=image_batch_size, **sampling)
    module = Redirection(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    trainer.predict(module, data, return_predictions=False)


def pixels(path):
    with Image.open(path) as file:
        content = bytearray(file.convert("RGB").tobytes())
    return torch.frombuffer(content, dtype=torch.uint8).int()


def test_the_manifest_describes_each_image(tmp_path):
    predict(tmp_path / "run")
    with (tmp_path / "run" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == MANIFEST_COLUMNS
    assert [(int(r["case_number"]), r["prompt"], int(r["evaluation_seed"])) for r in rows] == ROWS
    assert {(r["steps"], r["guidance"]) for r in rows} == {("3", "2.5")}
    for row in rows:
        for kind in ("edited", "original"):
            assert len(pixels(tmp_path / "run" / row[kind])) == 3 * 16 * 16


@pytest.mark.parametrize("size", [None, 24])
def test_the_manifest_is_a_prompt_file(tmp_path, size):
    predict(tmp_path / "run", size=size)
    requests = read_prompts(tmp_path / "run" / "manifest.csv", steps=50, guidance=7.5)
    assert [(int(s.case), s.prompt, s.seed) for s in requests] == ROWS
    assert {(s.steps, s.guidance, s.size) for s in requests} == {(3, 2.5, size)}


def test_a_seed_gives_the_same_image_in_any_batch(tmp_path):
    predict(tmp_path / "one")
    predict(tmp_path / "two", rows=ROWS[::-1], image_batch_size=1)
    for case, *_ in ROWS:
        one, two = (pixels(tmp_path / run / "edited" / f"{case}.png") for run in ("one", "two"))
        assert (one - two).abs().max() <= 1
    first, last = (pixels(tmp_path / "one" / "edited" / f"{case}.png") for case in (40, 5))
    assert (first - last).abs().max() > 1


def test_two_ranks_write_one_manifest(tmp_path):
    predict(tmp_path / "one", image_batch_size=1)
    predict(tmp_path / "two", image_batch_size=1, devices=2, strategy="ddp_fork")
    one, two = ((tmp_path / run / "manifest.csv").read_bytes() for run in ("one", "two"))
    assert one == two
    assert len(list((tmp_path / "two" / "edited").iterdir())) == len(ROWS)


def test_a_finished_run_is_not_written_over(tmp_path):
    predict(tmp_path / "run")
    before = (tmp_path / "run" / "edited" / "3.png").stat().st_mtime_ns
    with pytest.raises(
        ErasureError,
        match=r"predict needs a folder of its own; found .*manifest\.csv of a finished run",
    ):
        predict(tmp_path / "run")
    assert (tmp_path / "run" / "edited" / "3.png").stat().st_mtime_ns == before


def test_an_interrupted_run_retains_its_images(tmp_path, monkeypatch):
    def killed(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageWriter, "on_predict_epoch_end", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        predict(tmp_path / "run")
    assert (tmp_path / "run" / "edited" / "40.png").is_file()
    assert not (tmp_path / "run" / "manifest.csv").exists()


def test_pixels_are_rounded_not_cut():
    assert to_pil(torch.tensor([-1.0, 0.999, 2.0]).view(3, 1, 1)).getpixel((0, 0)) == (0, 255, 255)


def test_images_have_the_sizes_and_the_order_of_the_file(tmp_path):
    (tmp_path / "p.csv").write_text(
        "prompt,seed,guidance,width,height\na,1,2,16,16\nb,2,3,24,16\nc,3,2,16,16\nd,4,2,,\n"
    )
    trainer = quiet_trainer(
        default_root_dir=tmp_path / "run",
        callbacks=[ImageWriter()],
    )
    module = Redirection(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    trainer.predict(
        module, PromptData(prompts=str(tmp_path / "p.csv"), steps=2), return_predictions=False
    )
    requests = read_prompts(tmp_path / "run" / "manifest.csv", steps=50, guidance=7.5)
    assert [(s.prompt, s.size) for s in requests] == [
        ("a", 16),
        ("b", (16, 24)),
        ("c", 16),
        ("d", None),
    ]
    with Image.open(tmp_path / "run" / "edited" / "1.png") as file:
        assert file.size == (24, 16)


@pytest.mark.parametrize(("last", "size"), [("16,17", None), (",", 17)])
def test_a_size_the_model_cannot_take_is_refused_before_anything_is_drawn(tmp_path, last, size):
    (tmp_path / "p.csv").write_text(f"prompt,seed,width,height\na,1,16,16\nb,2,{last}\n")
    trainer = quiet_trainer(default_root_dir=tmp_path / "run", callbacks=[ImageWriter()])
    module = Redirection(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    data = PromptData(prompts=str(tmp_path / "p.csv"), steps=2, image_size=size)
    with pytest.raises(
        ErasureError, match="p.csv, case 1: .* needs a size that is a multiple of .* found 17"
    ):
        trainer.predict(module, data, return_predictions=False)
    assert not (tmp_path / "run" / "edited").exists()
