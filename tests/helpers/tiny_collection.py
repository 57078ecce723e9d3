"""A collection of LoRA files over any base, with few small photos, and sessions of it."""

import numpy as np
import torch
import yaml
from PIL import Image

from collectionlora.collection import Collection
from collectionlora.runs.session import Session, resolve_settings

SMALL = {
    "model": {"condition_resolution": 56, "gradient_checkpointing": False},
    "data": {"resolution": 32},
    "student": {"rank": 2},
    "critic": {"rank": 2},
    "targets": {"steps": 1, "guidance_scale": 4, "general": 2},
    "teach": {"steps": 1, "rank": 2},
    "distill": {"student_updates": 1, "student_update_every": 1, "rollout_steps": [2], "effect_ratio": 1},
    "log": {"tracker": "none"},
}


def write_photos(path, count):
    """Photos of noise in `path/photos`."""
    rng = np.random.default_rng(0)
    (path / "photos").mkdir(parents=True)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path / f"photos/{index}.png")


def write_collection(path, base, prompts, settings):
    """Effects by name with their teachers' prompts, each of NAME.safetensors; settings over `SMALL`."""
    effects = [
        {"name": name, "teacher": f"{name}.safetensors", "teacher_prompt": prompt, "photos": "photos"}
        for name, prompt in prompts.items()
    ]
    layers = {name: {**SMALL.get(name, {}), **settings.get(name, {})} for name in {*SMALL, *settings}}
    if base == "nano":
        del layers["model"]  # it has its own
    (path / "general.txt").write_text("blur\n")
    general = {"photos": "photos", "prompts": "general.txt"}
    manifest = {"base": str(base), "effects": effects, "general": general, "settings": layers}
    (path / "collection.yaml").write_text(yaml.safe_dump(manifest))
    return Collection.load(path)


def open_session(collection, **rest):
    return Session(collection, resolve_settings(collection, {}), **{"with_critics": False, **rest})


def assert_goes_on(collection, settings, run):
    """The second step of a distillation is the same, bit by bit, in a new session with the state of `run`."""
    kept = {name: tensor.clone() for name, tensor in run.tensors().items()}
    run(1)
    resumed = Session(collection, settings, with_critics=True).distillation(lambda *_: None)
    resumed.load_tensors(kept)
    resumed(1)
    assert all(map(torch.equal, run.tensors().values(), resumed.tensors().values()))
