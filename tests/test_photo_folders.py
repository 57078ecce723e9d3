"""What a folder of photos really holds: what is read, and that all else is named."""

import json
import logging
import os
import sys
import unicodedata

import numpy as np
import pytest
from helpers import small_collection
from PIL import Image
from typer.testing import CliRunner

import collectionlora
from collectionlora.collection import Collection
from collectionlora.command_line.verbs import app
from collectionlora.effectbench.truths import relative_names
from collectionlora.pictures import folders
from collectionlora.pictures.folders import (
    HEIC,
    HIDDEN,
    KIND,
    LINK,
    OTHER,
    SYSTEM,
    describe_left_out,
    find_photos,
    list_photos,
    warn_of_left_out,
)
from collectionlora.pictures.photos import read_photo, write_photo
from collectionlora.runs import verbs
from collectionlora.system.errors import UserError

READ = ("a.png", "B.JPG", "c.jfif", "d.jpe", "e.TIFF", "f.tif", "g.webp", "h.bmp", "sub/i.jpeg", "x.y/j.png")
LEFT_OUT = {
    "IMG_1.HEIC": HEIC,
    "l.hif": HEIC,
    "b.avif": KIND,
    "d.GIF": KIND,
    "e.jxl": KIND,
    "f.CR3": KIND,
    "g.dng": KIND,
    "h.svg": KIND,
    "i.jp2": KIND,
    "caption.txt": OTHER,
    "movie.MOV": OTHER,
    "no ending": OTHER,
    "Thumbs.db": SYSTEM,
    "desktop.ini": SYSTEM,
    ".DS_Store": HIDDEN,
    "._a.png": HIDDEN,
    ".hidden.png": HIDDEN,
}
FOLDERS_LEFT_OUT = {
    ".ipynb_checkpoints": HIDDEN,
    ".thumbnails": HIDDEN,
    "@eaDir": SYSTEM,
    "#recycle": SYSTEM,
    "__MACOSX": SYSTEM,
    "$RECYCLE.BIN": SYSTEM,
    "sub/@eaDir": SYSTEM,
}


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """A folder as phones, systems and servers of photos leave it."""
    monkeypatch.setattr(folders, "reads_heic", lambda: False)
    files = [*READ, *LEFT_OUT, *(f"{folder}/a.png" for folder in FOLDERS_LEFT_OUT)]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "around").symlink_to(tmp_path)
    return tmp_path


def test_photos_are_found_and_all_else_is_named_with_its_reason(phone):
    photos, left_out = find_photos(phone)
    assert {path.relative_to(phone).as_posix() for path in photos} == set(READ)
    found = {one.path.relative_to(phone).as_posix(): one.reason for one in left_out}
    assert found == {**LEFT_OUT, **FOLDERS_LEFT_OUT, "around": LINK}
    assert list_photos(phone) == photos == sorted(photos)


def test_a_link_to_nothing_is_left_to_who_reads_it(tmp_path):
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    assert [path.name for path in list_photos(tmp_path)] == ["circle.png", "gone.png"]
    for path in list_photos(tmp_path):
        with pytest.raises(UserError, match=path.name):
            read_photo(path)


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", os.fsencode(tmp_path / "shut")))
        return []

    monkeypatch.setattr(folders.os, "walk", walk)
    (one,) = find_photos(tmp_path)[1]
    assert (one.path.name, one.reason) == ("shut", "cannot be opened (Permission denied)")


def test_names_are_told_by_reason_and_many_are_counted(phone):
    texts = describe_left_out(phone, find_photos(phone)[1])
    assert f"left out: IMG_1.HEIC, l.hif ({HEIC})" in texts
    assert f"left out: b.avif, d.GIF, e.jxl and 4 more ({KIND})" in texts


def test_a_folder_of_nothing_that_is_read_says_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "reads_heic", lambda: False)
    (tmp_path / "IMG_1.HEIC").touch()
    with pytest.raises(
        UserError, match=r"holds no photos; left out: IMG_1\.HEIC \(HEIC is not read: pip inst"
    ):
        list_photos(tmp_path)


def test_check_names_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "reads_heic", lambda: False)
    folder = small_collection.build(tmp_path / "mine")
    for name in ("photos/IMG_1.HEIC", "photos/b.avif", "photos/.x.png", "pairs/sepia/source/c.gif"):
        (folder / name).touch()
    Image.new("RGB", (9, 9)).save(folder / "photos" / "c.jfif", format="JPEG")
    done = CliRunner().invoke(app, ["check", str(folder), "--json"])
    assert done.exit_code == 0
    left_out = {one["file"]: one["reason"] for one in json.loads(done.stdout)["left_out"]}
    assert left_out == {
        str(folder / "pairs/sepia/source/c.gif"): KIND,
        str(folder / "photos/.x.png"): HIDDEN,
        str(folder / "photos/IMG_1.HEIC"): HEIC,
        str(folder / "photos/b.avif"): KIND,
    }
    shown = CliRunner().invoke(app, ["check", str(folder)]).stderr
    assert f"left out: photos/IMG_1.HEIC ({HEIC})" in shown
    assert "ready" in shown


def test_runs_say_it_in_one_line_for_each_folder(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(folders, "reads_heic", lambda: False)
    folder = small_collection.build(tmp_path / "mine")
    for name in ("photos/IMG_1.HEIC", "photos/.x.png"):
        (folder / name).touch()
    with caplog.at_level(logging.WARNING):
        Collection.load(folder).check_files()
    (line,) = caplog.messages
    assert line.startswith(f"{folder / 'photos'}: left out: .x.png (")
    assert "; left out: IMG_1.HEIC (" in line
    caplog.clear()
    warn_of_left_out([folder / "pairs" / "sepia" / "source"])
    assert caplog.messages == []


def test_a_name_that_controls_a_terminal_is_told_by_its_escapes(tmp_path, caplog):
    (tmp_path / "a\x1b[31m\n.gif").touch()
    warn_of_left_out([tmp_path])
    assert r"a\x1b[31m .gif" in caplog.text


def test_pairs_match_though_a_mac_wrote_one_side(tmp_path):
    folder = small_collection.build(tmp_path / "mine")
    for side, form in (("source", "NFC"), ("target", "NFD")):
        name = unicodedata.normalize(form, "café.png")
        (folder / "pairs/sepia" / side / "0.png").rename(folder / "pairs/sepia" / side / name)
    collection = Collection.load(folder)
    pairs = collection.pair_paths(collection.effect("sepia"))
    assert [(len(s.stem), len(t.stem)) for s, t in pairs] == [(1, 1), (4, 5)]


def test_a_manifest_finds_a_folder_that_a_mac_has_named(tmp_path):
    folder = small_collection.build(tmp_path / "mine")
    (folder / "photos").rename(folder / unicodedata.normalize("NFD", "été"))
    manifest = folder / "collection.yaml"
    text = manifest.read_text().replace("photos: photos", f"photos: {unicodedata.normalize('NFC', 'été')}")
    manifest.write_text(text, encoding="utf-8")
    collection = Collection.load(folder)
    assert len(collection.general_photo_paths()) == len(collection.photo_paths(collection.effects[0])) == 2


def test_two_photographs_of_one_name_are_refused(tmp_path):
    write_photo(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    write_photo(tmp_path / "a.jpg", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"a\.png: has the name of a\.jpg"):
        relative_names(tmp_path)


def test_a_photo_of_an_iphone_is_read_with_the_extra(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (64, 48), (200, 60, 40)).save(tmp_path / "a.heic", quality=95)
    assert list_photos(tmp_path) == [tmp_path / "a.heic"]
    photo = read_photo(tmp_path / "a.heic")
    assert photo.shape == (48, 64, 3)
    assert np.abs(photo[24, 32].astype(int) - (200, 60, 40)).max() < 6


def spoil_pair(folder, source, target, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for side, size in (("source", source), ("target", target)):
        path = folder / "pairs/sepia" / side / "9.png"
        Image.new("RGB", size).save(path, exif=exif if side == "target" else None)


@pytest.mark.parametrize(
    ("source", "target", "orientation", "refused"),
    [
        ((48, 40), (96, 80), 1, False),  # larger, and the same
        ((48, 40), (40, 48), 6, False),  # turned by its EXIF, and the same
        ((1024, 683), (1008, 672), 1, False),  # sides of a model, in multiples of 16
        ((48, 40), (96, 40), 1, True),
        ((48, 40), (40, 48), 1, True),
        ((48, 40), (48, 40), 6, True),
        ((48, 40), (48, 43), 1, True),
    ],
)
def test_sides_of_a_pair_that_show_another_place_are_refused(tmp_path, source, target, orientation, refused):
    folder = small_collection.build(tmp_path / "mine", size=(40, 48))
    spoil_pair(folder, source, target, orientation)
    done = CliRunner().invoke(app, ["check", str(folder), "--json"])
    problems = json.loads(done.stdout)["problems"]
    assert len(problems) == refused
    if refused:
        assert problems[0]["file"].endswith("pairs/sepia/target/9.png")
        assert "has another shape than" in problems[0]["message"]


def test_teaching_refuses_a_pair_before_anything_is_trained(tmp_path, monkeypatch):
    folder = small_collection.build(tmp_path / "mine")
    spoil_pair(folder, (48, 40), (96, 40))
    monkeypatch.setattr(verbs, "load_backbone", lambda *_: sys.exit("a base was loaded"))
    with pytest.raises(UserError, match=r"9\.png: has another shape than .*: 96 x 40, not 48 x 40"):
        collectionlora.teach(folder, ["technicolor", "sepia"])
    assert not (folder / "runs").exists()
