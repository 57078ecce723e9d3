"""From image pairs to one file, on the embedded base: two effects are taught, distilled, and used.

    python examples/own_effect.py DIR [section.name=value ...]

The pairs are made from photographs that ship with scikit-image; bring your own in the same folders. Settings
override the base's recommendations: teach.steps=20 and the like make a quick pass that learns little.
"""

import sys
from pathlib import Path

import numpy as np
import yaml

from collectionlora import distill, edit, teach
from collectionlora.command_line.progress import shown_progress
from collectionlora.config import parse_overrides
from collectionlora.effects import EFFECTS
from collectionlora.pictures.photographs import HELDOUT, TRAIN, load_photograph, pool
from collectionlora.pictures.photos import write_photo

NAMES, PAIRS = ("duotone", "night-vision"), 24

folder, settings = Path(sys.argv[1]), parse_overrides(sys.argv[2:])
photographs, rng = pool(TRAIN), np.random.default_rng(0)
for name in NAMES:
    for index in range(PAIRS):
        photo = photographs.crop(rng)
        write_photo(folder / "pairs" / name / "source" / f"{index:02d}.png", photo)
        write_photo(folder / "pairs" / name / "target" / f"{index:02d}.png", EFFECTS[name](photo, rng))
(folder / "general.txt").write_text("keep the photo unchanged\nbrighten the photo\n")
effects = [
    {
        "name": name,
        "teacher": f"teachers/{name}.safetensors",
        "teacher_prompt": EFFECTS[name].teacher_prompt,
        "photos": f"pairs/{name}/source",
    }
    for name in NAMES
]
general = {"photos": f"pairs/{NAMES[0]}/source", "prompts": "general.txt"}
manifest = {"base": "nano", "effects": effects, "general": general}
(folder / "collection.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))

with shown_progress() as progress:
    teach(folder, overrides=settings, progress=progress)
    adapter = distill(folder, overrides=settings, resume=True, progress=progress)
for name in NAMES:
    edit(adapter, load_photograph(HELDOUT[0]), name).save(folder / f"{name}.png")
print(f"wrote {adapter} and a picture of each effect beside it")
