"""docs/images/effects.jpg: one photo under every effect of an adapter, by default of the LoRA that ships.

python scripts/effects_picture.py [ADAPTER] [--steps N] [--columns N] [--out FILE]
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from collectionlora import Editor
from collectionlora.pictures.photographs import load_photograph

OUT = Path(__file__).parents[1] / "docs" / "images" / "effects.jpg"
SIDE, GAP, QUALITY = 256, 6, 85
FACE, PORTRAIT = (90, 0, 350, 260), (52, 0, 388, 504)  # of the photograph astronaut: left, top, right, bottom


def draw(editor: Editor, steps: int | None, columns: int) -> Image.Image:
    """The photo over the first two columns of the upper rows, and each effect's picture of its face."""
    photograph, step = Image.fromarray(load_photograph("astronaut")), SIDE + GAP
    face = photograph.crop(FACE).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    rows = min(3, -(-len(editor.effects) // columns))
    portrait = photograph.crop(PORTRAIT).resize((2 * step - GAP, rows * step - GAP), Image.Resampling.LANCZOS)
    places = [(x, y) for y in range(len(editor.effects)) for x in range(columns + 2) if x > 1 or y >= rows]
    places = places[: len(editor.effects)]
    height = (places[-1][1] + 1) * step - GAP
    sheet = Image.new("RGB", ((columns + 2) * step - GAP, height), "white")
    sheet.paste(portrait)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for effect, (column, row) in zip(editor.effects, places, strict=True):
        x, y = column * step, row * step
        sheet.paste(editor.edit(face, effect, steps=steps), (x, y))
        pen.text((x + 8, y + SIDE - 30), effect, "white", font, stroke_width=2, stroke_fill="black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapter", nargs="?", default="nano")
    parser.add_argument("--steps", type=int, help="by default the adapter's own")
    parser.add_argument("--columns", type=int, default=6, help="beside the photo")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    draw(Editor.load(args.adapter), args.steps, args.columns).save(args.out, quality=QUALITY)


if __name__ == "__main__":
    main()
