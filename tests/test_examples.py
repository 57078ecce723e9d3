"""An exported `example.py` makes the picture of `edit`: for every family, at two sizes and in two shapes."""

import numpy as np
import pytest
import torch
from helpers.example_runs import run_examples
from helpers.tiny_pipelines import TINY
from PIL import Image

from collectionlora.adapters.recipe import Recipe, write_adapter
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones import load_backbone
from collectionlora.config import ModelSettings
from collectionlora.editing import Editor
from collectionlora.exporting.export import export
from collectionlora.pictures.photos import read_photo

SEED = 5
# Side of a square, and shape of a photo: its working sizes have odd and even numbers of tokens.
RESOLUTIONS, SHAPES = (96, 144), ((60, 90), (100, 75))
MODEL = ModelSettings(dtype="float32", condition_resolution=56)


def write_student(path, base, resolution):
    """An adapter that was never trained, and changes what the base makes."""
    backbone = load_backbone(str(base), MODEL)
    roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: 2})
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: tuple(0.1 * torch.randn(factor.shape, generator=generator) for factor in pair)
        for name, pair in roles.weights(STUDENT).items()
    }
    effects = {"sketch": "make it darker"}
    recipe = Recipe(
        base=str(base), model=MODEL, steps=2, shift=3.0, resolution=resolution, effects=effects, version="1"
    )
    write_adapter(path, weights, recipe)


@pytest.mark.thorough
@pytest.mark.parametrize("name", TINY)
def test_an_example_makes_the_picture_of_edit(name, tmp_path):
    torch.manual_seed(0)
    TINY[name]().save_pretrained(tmp_path / "base")
    rng, photos = np.random.default_rng(0), []
    for index, shape in enumerate(SHAPES):
        photos.append(tmp_path / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(photos[-1])
    jobs, ours = [], []
    for resolution in RESOLUTIONS:
        adapter, out = tmp_path / f"{resolution}.safetensors", tmp_path / str(resolution)
        write_student(adapter, tmp_path / "base", resolution)
        export(adapter, "diffusers", out)
        editor = Editor.load(adapter)
        for photo in photos:
            jobs.append([out / "example.py", photo, "sketch", out / f"{photo.stem}.png", SEED])
            ours.append(editor.sample(editor.fit(read_photo(photo)), [editor.prompt(["sketch"])], [SEED]))
    for expected, found in zip(ours, run_examples(jobs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
