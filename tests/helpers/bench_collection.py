"""A collection over the nano base that was never trained: random LoRAs, a finished adapter, a few photos."""

import numpy as np
import yaml

from collectionlora.adapters.formats import write_lora
from collectionlora.adapters.recipe import Recipe, write_adapter
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.collection import Collection
from collectionlora.pictures.photos import write_photo

SETTINGS = {
    "data": {"resolution": 32},
    "student": {"rank": 3},
    "critic": {"rank": 3},
    "targets": {"steps": 1, "samples": 1, "general": 2},
    "match": {"updates": 1},
    "sampling": {"steps": 1},
    "distill": {"student_updates": 1, "batch_size": 1, "student_update_every": 1, "rollout_steps": [1]},
}
PROMPTS = {"sepia": "<sepia_x> brown it", "mine": "<mine_y> my effect"}


def photo(seed, height=40, width=48):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def build(folder, prompts=PROMPTS, finished=None):
    """Effects by name with their student prompts; the adapter holds `finished` of them, by default all."""
    for index in range(2):
        write_photo(folder / "photos" / f"{index}.png", photo(index))
        write_photo(folder / "heldout" / f"person-{index}.png", photo(10 + index))
    (folder / "general.txt").write_text("blur the photo\n")
    backbone = NanoBackbone.load()
    roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: 3})
    effects = []
    for name, prompt in prompts.items():
        for parameter in roles.parameters(STUDENT):
            parameter.data.normal_(std=0.05)
        write_lora(folder / "teachers" / f"{name}.safetensors", roles.weights(STUDENT), {})
        effect = {"name": name, "teacher": f"teachers/{name}.safetensors", "teacher_prompt": f"apply {name}"}
        effects.append({**effect, "photos": "photos", "student_prompt": prompt})
    names = list(prompts) if finished is None else finished
    effects_held = {name: prompts[name] for name in names}
    schedule = {"steps": 1, "shift": 12.0, "sampler": "euler", "resolution": 32}  # of `SETTINGS` over nano's
    recipe = Recipe(base="nano", **schedule, effects=effects_held, version="0")
    write_adapter(folder / "collection.safetensors", roles.weights(STUDENT), recipe)
    general = {"photos": "photos", "prompts": "general.txt"}
    manifest = {"base": "nano", "effects": effects, "general": general, "settings": SETTINGS}
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return Collection.load(folder)
