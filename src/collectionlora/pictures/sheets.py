"""Several pictures as one: tables and grids with labels."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from collectionlora.pictures.photos import Photo

GAP, MARGIN, HEADING = 6, 12, 26
INK, PAPER = (34, 34, 34), (255, 255, 255)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Photo]]], columns: Sequence[str], cell: int = 192
) -> Photo:
    """A table of pictures as one uint8 image: `rows` are (label, one photo for each of `columns`).

    A cell is a square, in whose middle a photo keeps its shape.
    """
    font = ImageFont.load_default(14)
    label_width = MARGIN + int(max((font.getlength(label) for label, _ in rows), default=0.0)) + MARGIN
    width = label_width + len(columns) * (cell + GAP) + MARGIN
    height = MARGIN + HEADING + len(rows) * (cell + GAP) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, title in enumerate(columns):
        draw.text((label_width + i * (cell + GAP), MARGIN), title, INK, font)
    for j, (label, photos) in enumerate(rows):
        top = MARGIN + HEADING + j * (cell + GAP)
        draw.text((MARGIN, top + cell // 2 - 8), label, INK, font)
        for i, photo in enumerate(photos):
            picture = Image.fromarray(square_cell(photo, cell))
            sheet.paste(picture, (label_width + i * (cell + GAP), top))
    return np.asarray(sheet)


def square_cell(photo: Photo, side: int) -> Photo:
    """A photo in the middle of a square of paper, `[side, side, 3]`."""
    # Enlarging by whole pixels shows what the network made, not what an interpolation makes of it.
    kind = Image.Resampling.NEAREST if max(photo.shape[:2]) <= side else Image.Resampling.BOX
    return np.asarray(ImageOps.pad(Image.fromarray(photo), (side, side), kind, PAPER))


def labelled_grid(pictures: Mapping[str, Photo], columns: int = 4, width: int = 240) -> Photo:
    """Pictures of one size, each over its label, in rows of `columns`, every one `width` wide."""
    font = ImageFont.load_default(14)
    rows, cells = -(-len(pictures) // columns), min(columns, len(pictures))
    first = next(iter(pictures.values()))
    height = round(first.shape[0] / first.shape[1] * width)
    size = (2 * MARGIN + cells * (width + GAP) - GAP, MARGIN + rows * (height + HEADING + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (label, photo) in enumerate(pictures.items()):
        left = MARGIN + index % columns * (width + GAP)
        top = MARGIN + index // columns * (height + HEADING + GAP)
        sheet.paste(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS), (left, top))
        draw.text((left, top + height + 4), label, INK, font)
    return np.asarray(sheet)
