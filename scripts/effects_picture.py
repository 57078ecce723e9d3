"""docs/images/effects.jpg: one photo under every effect of the LoRA that ships."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from collectionlora import Editor
from collectionlora.pictures.photographs import load_photograph

OUT = Path(__file__).parents[1] / "docs" / "images" / "effects.jpg"
SIDE, GAP, COLUMNS, QUALITY = 256, 6, 4, 85
FACE, PORTRAIT = (90, 0, 350, 260), (52, 0, 388, 504)  # of the photograph astronaut: left, top, right, bottom


def main() -> None:
    photograph, editor = Image.fromarray(load_photograph("astronaut")), Editor.load("nano")
    face, step = photograph.crop(FACE).resize((SIDE, SIDE), Image.Resampling.LANCZOS), SIDE + GAP
    rows = -(-len(editor.effects) // COLUMNS)
    left, height = 2 * step, rows * step - GAP
    sheet = Image.new("RGB", (left + COLUMNS * step - GAP, height), "white")
    portrait = photograph.crop(PORTRAIT).resize((left - GAP, height), Image.Resampling.LANCZOS)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    sheet.paste(portrait)
    for index, effect in enumerate(editor.effects):
        x, y = left + index % COLUMNS * step, index // COLUMNS * step
        sheet.paste(editor.edit(face, effect), (x, y))
        draw.text((x + 8, y + SIDE - 30), effect, "white", font, stroke_width=2, stroke_fill="black")
    sheet.save(OUT, quality=QUALITY)


if __name__ == "__main__":
    main()
