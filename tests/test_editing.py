"""A finished adapter in use: files of any size, mode and orientation, through Python and the command line."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import collectionlora
from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.recipe import Recipe, read_adapter, write_adapter
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones import load_backbone
from collectionlora.backbones.nano import NanoBackbone
from collectionlora.command_line import edited_files
from collectionlora.command_line.edited_files import edit_files
from collectionlora.command_line.verbs import app
from collectionlora.editing import Editor, edit, strength_strip
from collectionlora.pictures.destinations import plan_jobs, select_jobs
from collectionlora.pictures.photos import read_photo, to_photos
from collectionlora.system.errors import UserError

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
    """The command line's exit code; a fault that the user can fix is 2."""
    try:
        app([str(a) for a in arguments])
    except UserError:
        return 2
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_an_editor_has_its_adapter_in_the_weights_and_makes_the_same_bits(adapter):
    editor = Editor.load(adapter)
    made = editor.edit(np.asarray(picture()), ["alpha"])
    assert not any("lora_" in name for name, _ in editor.backbone.network.named_parameters())
    backbone = load_backbone("nano", editor.recipe.model)
    roles = Roles(backbone.network, backbone.lora_targets, {STUDENT: 4}, fuse=True)
    roles.load(STUDENT, read_lora(adapter).weights)
    expected = Editor(backbone, lambda: roles, editor.recipe).edit(np.asarray(picture()), ["alpha"])
    assert np.array_equal(made, expected)


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


def test_python_takes_paths_pil_images_and_arrays(adapter, tmp_path):
    picture().save(tmp_path / "me.png")
    editor, array = Editor.load(str(adapter)), np.asarray(picture())
    made = editor.edit(tmp_path / "me.png", "alpha")
    assert (type(made), made.size) == (Image.Image, (80, 60))
    opaque = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    for same in (str(tmp_path / "me.png"), picture(), picture(mode="RGBA"), array, opaque):
        assert np.array_equal(made, editor.edit(same, ["alpha"]))
    gray = picture(mode="L")
    assert np.array_equal(editor.edit(gray, "alpha"), editor.edit(np.asarray(gray), "alpha"))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture((80, 40)).save(tmp_path / "sideways.jpg", exif=exif)
    assert editor.edit(Image.open(tmp_path / "sideways.jpg"), "alpha").size == (40, 80)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((8, 8, 3)), r"photo: is an array of float64 \[8, 8, 3\]; give a path"),
        (np.zeros((8, 8, 2), np.uint8), r"is an array of uint8 \[8, 8, 2\]"),
        (np.zeros((0, 8, 3), np.uint8), r"is an array of uint8 \[0, 8, 3\]"),
        (torch.zeros(3, 8, 8), "photo: is a Tensor; give a path, a PIL image, or a uint8 array"),
        (None, "photo: is a NoneType"),
    ],
    ids=["float", "two channels", "empty", "tensor", "none"],
)
def test_what_is_no_photo_is_one_clear_error(adapter, given, words):
    with pytest.raises(UserError, match=words):
        edit(adapter, given, "alpha")


def test_an_adapter_is_sampled_as_it_was_made_for(adapter, tmp_path):
    lora, recipe = read_adapter(adapter)
    write_adapter(
        tmp_path / "euler.safetensors", lora.weights, recipe.model_copy(update={"sampler": "euler"})
    )
    made = [Editor.load(path).edit(picture(), "alpha") for path in (adapter, tmp_path / "euler.safetensors")]
    assert not np.array_equal(*made)


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


def test_a_size_is_that_of_the_network_and_the_result_keeps_the_photos(adapter, tmp_path):
    editor, photo = Editor.load(adapter), np.asarray(picture())
    assert editor.fit(photo).shape == (1, 3, 56, 72)
    assert editor.fit(photo, 96).shape == (1, 3, 80, 112)
    assert editor.fit(photo, (96, 64)).shape == (1, 3, 64, 96)
    picture().save(tmp_path / "me.png")
    for size, given in (("96", 96), ("96x64", (96, 64))):
        out = tmp_path / f"{size}.png"
        assert (
            run(["edit", adapter, tmp_path / "me.png", "--effect", "alpha", "--size", size, "--out", out])
            == 0
        )
        assert np.array_equal(read_photo(out), editor.edit(photo, "alpha", size=given))
    assert not np.array_equal(read_photo(out), editor.edit(photo, "alpha"))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("100", "has a side of 100 pixels; give multiples of 8 from 8 to 256; effects were taught at 64"),
        ("0", "has a side of 0 pixels"),
        ("512", "has a side of 512 pixels"),
        ("96x100", "has a side of 100 pixels"),
        ("large", "is 'large'; give pixels: 128, or 160x96 for width and height"),
        ("96x", "is '96x'"),
    ],
)
def test_a_size_that_the_base_cannot_work_at_is_refused(adapter, tmp_path, size, words):
    picture().save(tmp_path / "me.png")
    with pytest.raises(UserError, match=f"size: {words}"):
        app(["edit", str(adapter), str(tmp_path / "me.png"), "--effect", "alpha", "--size", size])
    assert [path.name for path in tmp_path.iterdir()] == ["me.png"]


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
    assert written == [str(tmp_path / "out" / "a-beta.png"), str(tmp_path / "out" / "sub" / "b-beta.png")]
    assert all((Image.open(path).size == (80, 60)) for path in written)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"--effect": "gamma"}, "'gamma' is not in this collection; choose from alpha, beta"),
        ({"--effect": "alph"}, "'alph' is not in this collection; did you mean alpha?"),
        ({"--effect": "alhpa"}, "'alhpa' is not in this collection; did you mean alpha?"),
        ({"--then": "gamma"}, "'gamma' is not in this collection"),
        ({"--photo": "absent.jpg"}, "there is no such file"),
        ({"--out": "out.docx"}, "is not an image format"),
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


def test_a_photo_needs_no_more_than_an_effect(adapter, tmp_path, capsys):
    picture().save(tmp_path / "me.jpg")
    quick = ["--steps", "1", "--json"]
    assert run(["edit", adapter, tmp_path / "me.jpg", "--effect", "beta", "--then", "alpha", *quick]) == 0
    assert run(["edit", adapter, tmp_path / "me.jpg", "--effect", "all", *quick]) == 0
    made = [json.loads(line)["images"] for line in capsys.readouterr().out.splitlines()]
    names = [[Path(path).name for path in paths] for paths in made]
    assert names == [["me-beta-alpha.png"], ["me-alpha.png", "me-beta.png"]]
    assert all(Path(path).parent == tmp_path and Path(path).exists() for paths in made for path in paths)


def test_a_folder_goes_on_where_it_stopped_and_names_what_cannot_be_read(adapter, tmp_path, capsys):
    for name in ("a", "c"):
        picture().save(in_folder(tmp_path / "in") / f"{name}.png")
    (tmp_path / "in" / "b.png").write_bytes(b"no photo")
    arguments = ["edit", adapter, tmp_path / "in", "--effect", "beta", "--out", tmp_path / "out"]
    assert run([*arguments, "--steps", "1"]) == 2
    assert "error: " in (told := capsys.readouterr().err)
    assert "b.png: cannot be read as an image" in told
    made = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in made] == ["a-beta.png", "c-beta.png"]
    before = made[0].read_bytes()
    made[1].unlink()
    (tmp_path / "in" / "b.png").unlink()
    assert run([*arguments, "--seed", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["skipped"]) == ([str(made[1])], [str(made[0])])
    assert made[0].read_bytes() == before
    assert run([*arguments, "--seed", "1", "--overwrite"]) == 0
    assert made[0].read_bytes() != before


def test_many_edits_are_encoded_and_drawn_in_parts(adapter, tmp_path, monkeypatch):
    """A host's memory holds only some encoded edits; the pictures are the same."""
    for seed in range(2):
        picture(seed=seed).save(in_folder(tmp_path / "in") / f"{seed}.png")
    edit = partial(edit_files, adapter, tmp_path / "in", "all", steps=1)
    whole = edit(out=tmp_path / "whole").written
    told = []
    monkeypatch.setattr(edited_files, "MAX_ENCODED", 3)
    parts = edit(out=tmp_path / "parts", progress=lambda *state: told.append(state[:3]))
    assert [path.read_bytes() for path in parts.written] == [path.read_bytes() for path in whole]
    assert told == [(what, i, 4) for part in ((1, 2, 3), (4,)) for what in ("encode", "edit") for i in part]


def test_an_adapter_that_is_replaced_meanwhile_does_not_change_the_rest(adapter, tmp_path, monkeypatch):
    for seed in range(2):
        picture(seed=seed).save(in_folder(tmp_path / "in") / f"{seed}.png")
    mine, other = tmp_path / "mine.safetensors", tmp_path / "other.safetensors"
    shutil.copyfile(adapter, mine)
    lora, recipe = read_adapter(adapter)
    write_adapter(other, {name: (a, 2 * b) for name, (a, b) in lora.weights.items()}, recipe)
    edit = partial(edit_files, mine, tmp_path / "in", "alpha", steps=1)
    whole = edit(out=tmp_path / "whole").written
    monkeypatch.setattr(edited_files, "MAX_ENCODED", 1)
    replaced = edit(out=tmp_path / "replaced", progress=lambda *_: shutil.copyfile(other, mine)).written
    assert [path.read_bytes() for path in replaced] == [path.read_bytes() for path in whole]
    after = edit(out=tmp_path / "after").written
    assert [path.read_bytes() for path in after] != [path.read_bytes() for path in whole]


def in_folder(folder):
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("out", "more", "words"),
    [
        ("me.png", [], "me.png: --out: is a file that this edit reads; give another file or folder"),
        ("me.png", ["--overwrite"], "is a file that this edit reads"),
        ("link.png", ["--overwrite"], "is a file that this edit reads"),
        ("twin.png", ["--overwrite"], "is a file that this edit reads"),
        ("old.png", [], "old.png: --out: exists already; give --overwrite, or another --out"),
        ("old.png", ["--effect", "all"], "is one file for 2 results; give a folder"),
        ("new.png", ["--effect", "all"], "is one file for 2 results; give a folder"),
    ],
)
def test_no_file_is_replaced_unasked(adapter, tmp_path, monkeypatch, out, more, words):
    monkeypatch.setattr(Editor, "over", lambda *_: pytest.fail("a model was loaded before all was checked"))
    picture().save(tmp_path / "me.png")
    (tmp_path / "link.png").symlink_to("me.png")
    (tmp_path / "twin.png").hardlink_to(tmp_path / "me.png")
    (tmp_path / "old.png").write_text("dear")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    arguments = ["edit", str(adapter), str(tmp_path / "me.png"), "--effect", "alpha", *more]
    with pytest.raises(UserError, match=words):
        app([*arguments, "--out", str(tmp_path / out)])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_reference_is_never_a_result(tmp_path):
    picture().save(tmp_path / "me.png")
    picture().save(tmp_path / "look.png")
    jobs = plan_jobs(tmp_path / "me.png", [("alpha",)], tmp_path / "look.png")
    with pytest.raises(UserError, match="is a file that this edit reads"):
        select_jobs(jobs, [tmp_path / "look.png"], overwrite=True)


def test_photos_of_one_name_have_results_of_their_own(tmp_path):
    names = ["b.png", "me.JPG", "me.png", "me.webp"]
    for name in names:
        (in_folder(tmp_path / "in") / name).touch()
    jobs = plan_jobs(tmp_path / "in", [("alpha",)], tmp_path / "out")
    expected = ["b-alpha.png", "me.JPG-alpha.png", "me.png-alpha.png", "me.webp-alpha.png"]
    assert [job.out.name for job in select_jobs(jobs, [], overwrite=False)] == expected
    (tmp_path / "in" / "ME.png").touch()  # one file with me.png on macOS and Windows
    with pytest.raises(UserError, match=r"would be the result of .*; rename one of the photos"):
        select_jobs(plan_jobs(tmp_path / "in", [("alpha",)], tmp_path / "out"), [], overwrite=False)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (None, "--out: is missing; a folder of photos needs a folder for its results"),
        ("in", "lies in the folder of the photos; give a folder outside of it"),
        ("in/made", "lies in the folder of the photos"),
        ("in/me.png", "is a file; a folder of photos needs a folder"),
    ],
)
def test_results_of_a_folder_are_no_photos_of_the_next_call(tmp_path, out, words):
    (in_folder(tmp_path / "in") / "me.png").touch()
    with pytest.raises(UserError, match=words):
        plan_jobs(tmp_path / "in", [("alpha",)], out and tmp_path / out)


def test_a_plain_folder_or_file_is_refused_with_a_hint(tmp_path):
    with pytest.raises(UserError, match="collectionlora distill"):
        Editor.load(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="not a safetensors file"):
        Editor.load(tmp_path / "x.safetensors")


def test_nano_is_the_collection_that_ships():
    editor = Editor.load("nano")
    assert len(editor.recipe.effects) == 50
    photo = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    hot = editor.edit(photo, ["thermal"])
    assert np.abs(np.asarray(hot).astype(int) - photo).mean() > 30
    assert editor.effects == list(editor.recipe.effects)
    assert repr(editor).startswith("<Editor over nano, 50 effects: pencil-sketch, ")


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64, 10**30])
def test_a_seed_that_no_generator_takes_is_refused(adapter, tmp_path, seed):
    picture().save(tmp_path / "me.png")
    out = tmp_path / "out.png"
    arguments = ["edit", adapter, "--effect", "alpha", "--photo", tmp_path / "me.png", "--out", out]
    assert run([*arguments, f"--seed={seed}"]) == 2
    assert not out.exists()
    with pytest.raises(UserError, match=f"seed: is .*; give a whole number from 0 to {2**64 - 1}"):
        Editor.load(adapter).edit(np.zeros((8, 8, 3), np.uint8), ["alpha"], seed=seed)


@pytest.mark.parametrize("steps", [0, -1, 2.5, 1001])
def test_a_number_of_steps_that_is_none_is_refused(adapter, tmp_path, steps):
    picture().save(tmp_path / "me.png")
    editor = Editor.load(adapter)
    with pytest.raises(UserError, match=f"steps: {steps} is no number of steps; choose 1 to 1000"):
        editor.edit(np.zeros((8, 8, 3), np.uint8), ["alpha"], steps=steps)
    with pytest.raises(UserError, match="no number of steps"):
        collectionlora.edit(adapter, tmp_path / "me.png", "alpha", steps=steps)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seed": "3"}, "seed: is '3'; give a whole number"),
        ({"seed": 1.5}, "seed: is 1.5; give a whole number"),
        ({"strength": "1"}, "strength: is '1'; give a number from 0 to 1"),
        ({"strength": float("nan")}, "strength: is nan; give a number from 0 to 1"),
        ({"effects": []}, "effect: none is given; choose from alpha"),
    ],
)
def test_what_is_no_number_and_no_effect_is_refused(adapter, given, words):
    with pytest.raises(UserError, match=words):
        Editor.load(adapter).edit(np.zeros((8, 8, 3), np.uint8), **{"effects": ["alpha"], **given})


def test_seeds_of_64_bits_are_taken(adapter):
    editor, photo = Editor.load(adapter), np.asarray(picture((64, 64)))
    one, other = (editor.edit(photo, ["alpha"], seed=seed) for seed in (2**64 - 1, 2**63))
    assert not np.array_equal(one, other)


def test_results_of_names_that_are_too_long_end_in_a_hash_of_their_own(adapter, tmp_path):
    for letter in "ab":
        picture((16, 16)).save(in_folder(tmp_path / "in") / f"{'é' * 125}{letter}.png")
    assert run(["edit", adapter, tmp_path / "in", "--effect", "alpha", "--out", tmp_path / "out"]) == 0
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(names) == 2
    assert all(len(name.encode()) <= 255 and name.endswith("-alpha.png") for name in names)


def test_a_photo_with_a_name_of_nearly_255_bytes_is_edited(adapter, tmp_path):
    photo = tmp_path / f"{'é' * 100}.png"
    picture((16, 16)).save(photo)
    assert run(["edit", adapter, photo, "--effect", "alpha"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {photo.name, f"{'é' * 100}-alpha.png"}


def test_another_quantisation_than_that_of_the_adapter_is_said_in_one_line(adapter, tmp_path, capsys, caplog):
    pytest.importorskip("bitsandbytes")
    weights, recipe = read_lora(adapter).weights, read_adapter(adapter)[1]
    packed = tmp_path / "packed.safetensors"
    model = recipe.model.model_copy(update={"quantization": "nf4"})
    write_adapter(packed, weights, recipe.model_copy(update={"model": model}))
    photo = tmp_path / "me.png"
    picture().save(photo)
    said = {"nf4": "the base in nf4", "none": "the whole base"}
    made = {}
    for path, own, other in ((adapter, "none", "nf4"), (packed, "nf4", "none")):
        for kind in (own, other):
            caplog.clear()
            out = tmp_path / f"{path.stem}-{kind}.png"
            chosen = [] if kind == own else ["--quantization", kind]
            assert run(["edit", path, photo, "--effect", "alpha", "--out", out, *chosen]) == 0
            made[path, kind] = read_photo(out)
            expected = f"{path}: was distilled on {said[own]} and is used on {said[kind]}"
            lines = [message for message in caplog.messages if "distilled on" in message]
            assert [line.startswith(expected) for line in lines] == ([] if kind == own else [True])
    for kind in said:  # the file does not matter, how the base is held does
        assert np.abs(made[adapter, kind] - made[packed, kind].astype(float)).max() <= 2
    assert not np.array_equal(made[adapter, "none"], made[adapter, "nf4"])
    with pytest.raises(
        UserError, match="--quantization: 'nf5' is not a kind of quantisation; choose from none, nf4, int8"
    ):
        Editor.load(adapter, "nf5")
