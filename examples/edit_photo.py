"""One photo under one effect, and the same from the photo to the whole effect in five strengths.

    python examples/edit_photo.py COLLECTION PHOTO EFFECT OUT

COLLECTION is a distilled collection's folder or its one file, for example demo/collection.
"""

import sys
from pathlib import Path

from collectionlora import Editor
from collectionlora.editing import STRIP, strength_strip
from collectionlora.pictures.photos import read_photo, write_photo
from collectionlora.pictures.sheets import labelled_grid

collection, photo, effect, out = sys.argv[1:]
editor = Editor.load(collection)
picture = read_photo(Path(photo))

Path(out).mkdir(parents=True, exist_ok=True)
editor.edit(photo, effect, seed=0).save(Path(out) / f"{effect}.png")
strip = strength_strip(editor, picture, effect)
labels = [f"strength {strength:g}" for strength in STRIP]
write_photo(
    Path(out) / f"{effect}-strengths.png", labelled_grid(dict(zip(labels, strip, strict=True)), columns=5)
)
