"""A collection of two effects over the nano base, never trained: LoRAs, two photos, instructions, pairs."""

import numpy as np
import yaml
from PIL import Image

from helpers.random_loras import write_random_loras

NAMES = ("sepia", "technicolor")


def build(folder, paired=NAMES, size=(24, 24), settings=None):
    """The whole folder; `paired` are the effects with image pairs to be taught from."""
    (folder / "teachers").mkdir(parents=True)
    write_random_loras(folder / "teachers", NAMES)
    rng = np.random.default_rng(0)
    for sub in ("photos", *(f"pairs/{name}/{side}" for name in paired for side in ("source", "target"))):
        (folder / sub).mkdir(parents=True)
        for index in range(2):
            pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / sub / f"{index}.png")
    (folder / "general.txt").write_text("blur the photo\nbrighten the photo\n")
    effects = [
        {
            **{"name": name, "teacher": f"teachers/{name}.safetensors", "photos": "photos"},
            "teacher_prompt": f"make it {name}",
        }
        for name in NAMES
    ]
    general = {"photos": "photos", "prompts": "general.txt"}
    manifest = {"base": "nano", "effects": effects, "general": general, "settings": settings or {}}
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))
    return folder
