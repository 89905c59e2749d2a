"""Draws a contact sheet of the emoji world: things, and some of them in each of its styles.

Usage: python benchmarks/contact_sheet.py [--out docs/emoji-world.png]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from erasure_lightning.concepts.worlds import World, find_world

COLUMNS, ROWS = 12, 8

#: Things drawn in every style: two rows of three, in four styles.
STYLED = ("fox", "owl", "strawberry", "hamburger", "rocket", "guitar")

#: Sizes in pixels.
IMAGE, CELL, LINE, MARGIN = 112, 128, 22, 16

INK, FAINT = "#24292f", "#57606a"


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/emoji-world.png"), help="file of the sheet"
    )
    out: Path = parser.parse_args().out
    world = find_world("emoji-world")
    assert world is not None  # find_world raises if it is not installed
    sheet = draw(world)
    out.parent.mkdir(parents=True, exist_ok=True)
    shrink(sheet).save(out, optimize=True)
    print(f"{out}: {sheet.width}x{sheet.height}, {out.stat().st_size / 1000:.0f} kB")


def draw(world: World) -> Image.Image:
    """Sheet of two parts: things without a style, then a few of them in every style."""
    things = spread(world, COLUMNS * ROWS)
    styled = [(thing, style) for thing in STYLED for style in world.styles]
    prompts = [f"a {thing}" for thing in things] + [
        f"a {thing}, {style} style" for thing, style in styled
    ]
    images = sample(world, prompts)
    top = part(
        f"{len(things)} of the {len(world.labels)} things: “a THING”, seed 0", things, images
    )
    names = [f"{thing}, {style}" for thing, style in styled]
    bottom = part("The four styles: “a THING, STYLE style”, seed 0", names, images[len(things) :])
    return stack(top, bottom)


def spread(world: World, count: int) -> list[str]:
    """Labels spread evenly over the table, without duplicates and names too long for a cell."""
    names = [label.name for label in world.labels if len(label.name) <= 15]
    single = [
        name
        for i, name in enumerate(names)
        if not any(world.same(name, other) for other in names[:i])
    ]
    return [single[i * len(single) // count] for i in range(count)]


@torch.inference_mode()
def sample(world: World, prompts: Sequence[str], batch: int = 24) -> list[Image.Image]:
    """Images of prompts, each from a generator of its own with seed 0, whatever its batch."""
    pipeline = world.load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        noise = [torch.Generator().manual_seed(0) for _ in chunk]
        images += pipeline(
            chunk, num_inference_steps=world.steps, guidance_scale=world.guidance, generator=noise
        ).images
    return images


def part(title: str, names: Sequence[str], images: Sequence[Image.Image]) -> Image.Image:
    """Grid of images with their names below and a title above."""
    rows = -(-len(names) // COLUMNS)
    sheet = Image.new(
        "RGB", (COLUMNS * CELL + 2 * MARGIN, rows * (CELL + LINE) + 2 * MARGIN + LINE), "white"
    )
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN + (CELL - IMAGE) // 2, MARGIN), title, INK, ImageFont.load_default(18))
    for i, (name, image) in enumerate(zip(names, images, strict=False)):
        x = MARGIN + i % COLUMNS * CELL
        y = 2 * MARGIN + LINE + i // COLUMNS * (CELL + LINE)
        big = image.resize((IMAGE, IMAGE), Image.Resampling.LANCZOS)
        sheet.paste(big, (x + (CELL - IMAGE) // 2, y))
        pen.text(
            (x + CELL // 2, y + IMAGE + 4), name, FAINT, ImageFont.load_default(13), anchor="ma"
        )
    return sheet


def stack(*parts: Image.Image) -> Image.Image:
    """Parts of one width, stacked vertically."""
    sheet = Image.new("RGB", (parts[0].width, sum(piece.height for piece in parts)))
    top = 0
    for piece in parts:
        sheet.paste(piece, (0, top))
        top += piece.height
    return sheet


def shrink(sheet: Image.Image) -> Image.Image:
    """The same image in 256 colours, a third of the size."""
    # Near-white becomes white, so that the palette's white is that of the sheet.
    clean = sheet.point(lambda value: 255 if value > 243 else value)
    palette = clean.quantize(256, kmeans=3)
    # Dithered, since soft shades would show bands.
    return clean.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


if __name__ == "__main__":
    main()
