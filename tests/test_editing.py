"""A finished adapter in use: files of any size, mode and orientation, through Python and the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from collectionlora.adapters.recipe import Recipe, write_adapter
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.cli import app
from collectionlora.data import read_photo, to_photos
from collectionlora.editing import Editor, edit, strength_strip
from collectionlora.errors import UserError

EFFECTS = {"alpha": "<alpha_bodogi> make it a cartoon", "beta": "<beta_nuvaka> make it glow"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    backbone = NanoBackbone.load()
    roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: 4})
    generator = torch.Generator().manual_seed(3)
    for parameter in roles.parameters(STUDENT):
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path_factory.mktemp("adapter") / "collection.safetensors"
    recipe = Recipe(base="nano", steps=2, shift=3.0, resolution=64, effects=EFFECTS, version="0")
    write_adapter(path, roles.weights(STUDENT), recipe)
    return path


def picture(size=(80, 60), mode="RGB", seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def run(arguments):
    """The command line's exit code; a fault that the user can mend is 2."""
    try:
        app([str(a) for a in arguments])
    except UserError:
        return 2
    except SystemExit as stopped:
        return stopped.code
    return 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(80, 60), (33, 120), (200, 17)])
def test_any_size_and_mode_keeps_its_size(adapter, tmp_path, size, mode):
    source = tmp_path / ("in.tif" if mode == "CMYK" else "in.png")
    picture(size, mode).save(source)
    assert run(["edit", adapter, "--effect", "alpha", "--photo", source, "--out", tmp_path / "out.png"]) == 0
    with Image.open(tmp_path / "out.png") as made:
        assert made.size == size
        assert made.mode == "RGB"


def test_a_photo_taken_sideways_comes_out_upright(adapter, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    picture((80, 40)).save(tmp_path / "in.jpg", exif=exif)
    run(["edit", adapter, "--effect", "alpha", "--photo", tmp_path / "in.jpg", "--out", tmp_path / "out.png"])
    assert read_photo(tmp_path / "out.png").shape == (80, 40, 3)


def test_seed_effect_and_composition_decide_the_picture(adapter):
    editor, photo = Editor.load(adapter), np.asarray(picture())
    first = editor.edit(photo, ["alpha"], seed=1)
    assert np.array_equal(first, edit(adapter, photo, "alpha", seed=1))
    for effects, seed in ((["alpha"], 2), (["beta"], 1), (["alpha", "beta"], 1), (["beta", "alpha"], 1)):
        assert not np.array_equal(first, editor.edit(photo, effects, seed=seed))
    assert editor.prompt(["alpha", "beta"]) == f"apply {EFFECTS['alpha']}, then {EFFECTS['beta']}"


def test_an_effect_of_the_photo_alone_refuses_references(adapter, tmp_path):
    picture().save(tmp_path / "in.png")
    arguments = ["edit", adapter, "--effect", "alpha", "--photo", tmp_path / "in.png"]
    extra = ["--out", tmp_path / "out.png", "--reference", tmp_path / "in.png"]
    assert run([*arguments, *extra]) == 2
    assert not (tmp_path / "out.png").exists()
    with pytest.raises(UserError, match="taught with 0 reference images, 1 are given; leave them out"):
        Editor.load(adapter).edit(np.asarray(picture()), ["alpha"], references=[np.asarray(picture())])


def test_strength_goes_from_the_photo_to_the_whole_effect(adapter):
    editor, photo = Editor.load(adapter), np.asarray(picture())
    fitted = editor.fit(photo)
    strip = strength_strip(editor, photo, "alpha", seed=1)
    assert np.array_equal(strip[0], to_photos(fitted)[0])
    whole = editor.sample(fitted, [editor.prompt(["alpha"])], [1])
    assert np.abs(strip[-1].astype(int) - to_photos(whole)[0]).max() <= 1
    distances = [np.abs(made.astype(float) - strip[0]).mean() for made in strip]
    assert distances == sorted(distances)
    assert np.array_equal(editor.edit(photo, ["alpha"]), editor.edit(photo, ["alpha"], strength=1))
    with pytest.raises(UserError, match=r"strength: is 1\.5; give a number from 0 to 1"):
        editor.edit(photo, ["alpha"], strength=1.5)


def test_a_batch_mixes_effects_and_equals_single_edits(adapter):
    editor = Editor.load(adapter)
    editor.backbone.network.float()  # bfloat16 products round differently by the batch's shape
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = [editor.prompt(["alpha"]), editor.prompt(["beta"])]
    both = editor.sample(images, prompts, [5, 6])
    for i in range(2):
        alone = editor.sample(images[i : i + 1], prompts[i : i + 1], [5 + i])
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-4, rtol=0)


def test_a_folder_goes_in_and_a_folder_comes_out(adapter, tmp_path, capsys):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    picture(seed=1).save(tmp_path / "in" / "a.jpg")
    picture(seed=2).save(tmp_path / "in" / "sub" / "b.webp")
    arguments = ["edit", adapter, "--effect", "beta", "--photo", tmp_path / "in", "--out", tmp_path / "out"]
    assert run([*arguments, "--steps", "1", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["images"]
    assert written == [str(tmp_path / "out" / "a.png"), str(tmp_path / "out" / "sub" / "b.png")]
    assert all((Image.open(path).size == (80, 60)) for path in written)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"--effect": "gamma"}, "'gamma' is not in this collection; choose from alpha, beta"),
        ({"--then": "gamma"}, "'gamma' is not in this collection"),
        ({"--photo": "absent.jpg"}, "there is no such file"),
        ({"--out": "out.docx"}, "is no image format"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(adapter, tmp_path, arguments, words):
    picture().save(tmp_path / "in.png")
    given = {"--effect": "alpha", "--photo": "in.png", "--out": "out.png", **arguments}
    flat = []
    for key, value in given.items():
        flat += [key, str(tmp_path / value) if key in ("--photo", "--out") else value]
    with pytest.raises(UserError) as error:
        app(["edit", str(adapter), *flat])
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.png"]


def test_a_plain_folder_or_file_is_refused_with_the_mend(tmp_path):
    with pytest.raises(UserError, match="collectionlora distill"):
        Editor.load(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="not a safetensors file"):
        Editor.load(tmp_path / "x.safetensors")


def test_nano_is_the_collection_that_ships():
    editor = Editor.load("nano")
    assert len(editor.recipe.effects) == 12
    photo = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    hot = editor.edit(photo, ["thermal"])
    assert np.abs(hot.astype(int) - photo).mean() > 30
