import csv
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from PIL import Image, ImageChops
from trivial import Redirection, quiet_trainer

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks import paired_images
from erasure_lightning.callbacks.sample_grid import SampleGrid
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data import label_fonts
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.data.image_grid import GridRow, draw_grid, wrap_text
from erasure_lightning.data.image_plan import ImageLoader, ImageRequest
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.groups import GROUP_HEADINGS


def requests(prompts, seeds=3):
    return [
        ImageRequest(p, seed, group, "", "", 2, 3.0)
        for group, p in prompts
        for seed in range(seeds)
    ]


def module():
    return Redirection(
        concepts=[Concept("cat", "dog", domain=["kitten"]), Concept("star")],
        backbone=TinyBackbone(),
    )


def feed(grid, planned, trainer):
    """Calls the callback as Lightning would, with red originals and blue edits."""
    edit = module()
    grid.begin(edit, planned)
    original = torch.ones(len(planned), 3, 16, 16) * torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    grid.take(planned, original, original.flip(1))
    grid.finish(trainer, edit)


def trainer(folder, *loggers):
    return SimpleNamespace(
        default_root_dir=folder, is_global_zero=True, loggers=loggers, global_step=7
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_prompts_are_those_of_the_plan_on_any_number_of_ranks(ranks, monkeypatch):
    planned = requests([("specificity", f"thing {i}") for i in range(7)], seeds=2)
    loaders = [ImageLoader(planned, 4, None, number, ranks) for number in range(ranks)]
    gathered = []
    monkeypatch.setattr(paired_images, "all_gather_items", lambda own: gathered.append(own) or own)
    for number, loader in enumerate(loaders):
        monkeypatch.setattr(paired_images, "rank", lambda number=number: number)
        SampleGrid().on_test_start(SimpleNamespace(test_dataloaders=loader, testing=True), module())
    items = [item for own in gathered for item in own]
    monkeypatch.setattr(paired_images, "all_gather_items", lambda own: items)
    grid = SampleGrid()
    grid.on_test_start(SimpleNamespace(test_dataloaders=loaders[0], testing=True), module())
    assert [prompt for _, prompt in grid._prompts] == ["thing 0", "thing 2", "thing 4"]


def test_a_run_ends_with_its_grid(tmp_path):
    run = quiet_trainer(
        default_root_dir=tmp_path,
        callbacks=[SampleGrid()],
    )
    run.test(
        module(),
        PromptData(others=5, seeds=3, steps=2, neighbours=["bird"], image_batch_size=4),
        verbose=False,
    )
    with Image.open(tmp_path / "grid.png") as grid:
        grid.load()
    assert grid.width > 4 * 128
    assert 8 * 128 < grid.height < 12 * 200


def test_originals_stand_left_of_edits(tmp_path):
    feed(SampleGrid(rows=1, seeds=2), requests([("efficacy", "a cat")]), trainer(tmp_path))
    with Image.open(tmp_path / "grid.png") as grid:
        row = [grid.getpixel((x, grid.height - 80)) for x in range(grid.width)]
    red, blue = (
        [x for x, pixel in enumerate(row) if pixel == colour]
        for colour in ((255, 0, 0), (0, 0, 255))
    )
    assert len(red) == len(blue) == 2 * 128
    assert red[0] < blue[0] < red[128] < blue[128]


def test_the_same_images_are_files(tmp_path):
    planned = requests([("specificity", "a boat"), ("efficacy", 'a "cat", \n<b>')])
    feed(SampleGrid(seeds=2), planned[::-1], trainer(tmp_path))
    with (tmp_path / "samples" / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["prompt", "group", "seed", "before", "after"]
    cat = 'a "cat", \n<b>'
    assert [(row["prompt"], row["group"], row["seed"]) for row in rows] == [
        (cat, "efficacy", "0"),
        (cat, "efficacy", "1"),
        ("a boat", "specificity", "0"),
        ("a boat", "specificity", "1"),
    ]
    assert [r["after"] for r in rows] == [f"00{i}-after.png" for i in range(4)]
    colours = [
        Image.open(tmp_path / "samples" / rows[0][when]).getpixel((3, 3))
        for when in ("before", "after")
    ]
    assert colours == [(255, 0, 0), (0, 0, 255)]


def test_at_most_three_rows_of_a_group_and_the_chosen_seeds(tmp_path):
    grid = SampleGrid(seeds=2)
    prompts = [(group, f"{group} {i}") for group in GROUP_HEADINGS for i in range(9)]
    feed(grid, requests(prompts), trainer(tmp_path))
    assert len(grid._lines(grid._cells)) == 3 * len(GROUP_HEADINGS)
    assert {c.request.seed for c in grid._cells} == {0, 1}


def test_long_prompts_and_odd_characters_break_nothing(tmp_path):
    odd = [
        "word " * 500,
        "x" * 5000,
        "",
        "line\nbreak\ttab",
        "猫 🐱 \u202eab\u0301 \ud800",
        "[bold]{}%s",
    ]
    sizes = []
    for prompt in ["a cat", *odd]:
        feed(SampleGrid(), requests([("efficacy", prompt)]), trainer(tmp_path))
        with Image.open(tmp_path / "grid.png") as grid:
            sizes.append(grid.size)
    assert len(set(sizes)) == 1


def test_texts_are_wrapped_to_the_lines_there_are():
    assert wrap_text("a cat", 17, 200, 4) == ["a cat"]
    assert len(wrap_text("word " * 100, 17, 200, 4)) == 4
    assert " ".join(wrap_text("word " * 100, 17, 200, 4)).count("word") == 100


def test_missing_images_leave_an_empty_place():
    dot = Image.new("RGB", (64, 64), "#ff0000")
    grid = draw_grid("t", "s", ["a", "b"], [GridRow("h", "p", [dot, None])])
    assert grid.getpixel((24 + 230 + 64, grid.height - 90)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(320, 80), (80, 320), (300, 200), (200, 200), (16, 8)])
def test_images_that_are_not_square_keep_their_proportions(size):
    image = Image.new("RGB", size, "red")
    grid = draw_grid("t", "s", ["a", "b"], [GridRow("h", "p", [image, None])])
    _, green, _ = grid.split()
    left, upper, right, lower = green.point(lambda value: 255 * (value < 1)).getbbox()
    width, height = right - left, lower - upper
    assert max(width, height) == min(max(128, *size), 192)
    assert width / height == pytest.approx(size[0] / size[1], rel=0.02)


def test_without_images_no_file_is_written(tmp_path):
    grid = SampleGrid()
    grid.begin(module(), [])
    grid.finish(trainer(tmp_path), module())
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("name", "value", "most"), [("rows", 0, 3), ("rows", 4, 3), ("seeds", 5, 4)]
)
def test_an_unreadable_grid_is_refused(name, value, most):
    with pytest.raises(
        ErasureError, match=f"SampleGrid needs {name} of 1 to {most}, .* found {value}"
    ):
        SampleGrid(**{name: value})


@pytest.mark.parametrize(("name", "other"), [("Dalí", "Dalé"), ("Жук", "Жар"), ("Łódź", "Śódź")])
def test_letters_beyond_ascii_are_drawn(name, other):
    dot = Image.new("RGB", (8, 8))
    one, two = (
        draw_grid("t", "s", ["a", "b"], [GridRow("h", text, [dot, None])]) for text in (name, other)
    )
    assert ImageChops.difference(one, two).getbbox()


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("a \U0001f480 skull", ["a", "U+1F480", "skull"]),
        ("\u732b", ["U+732B"]),
        ("Dal\u00ed \u2694", ["Dal\u00ed", "\u2694"]),
        ("\ud800", ["?"]),
    ],
)
def test_letters_that_no_font_has_are_spelled_out(monkeypatch, text, drawn):
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", list)
    label_fonts._best_file.cache_clear()
    assert wrap_text(text, 17, 1000, 4) == [" ".join(drawn)]


def test_letters_that_a_font_of_the_system_has_are_drawn_by_it(monkeypatch, tmp_path):
    """Here a font of mathematical letters, which the usual one lacks."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    letter = "\ue000"
    fonts = [str(file) for file in sorted(folder.glob("STIXNonUni.ttf"))]
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    fonts += [str(tmp_path / "damaged.ttf"), str(folder / "LastResortHE-Regular.ttf")]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: fonts)
    label_fonts._best_file.cache_clear()
    assert label_fonts.spelled_out(letter) == letter
    assert label_fonts.label_font(letter, 17).path == fonts[0]
    label_fonts._best_file.cache_clear()
