"""`scripts/nano/on_gpu.sh`: base, teachers and student in one go."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from collectionlora.effects import ALL_EFFECTS
from collectionlora.pictures.photographs import HELDOUT, TRAIN, load_photograph

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def on_gpu(monkeypatch):
    for folder in ("gpu", "nano"):
        monkeypatch.syspath_prepend(SCRIPTS / folder)
    monkeypatch.setenv("PYTHONPATH", "")
    return importlib.import_module("on_gpu")


def make_work(on_gpu, folder):
    folder.mkdir()
    (folder / "out").mkdir()
    return on_gpu.Work(Namespace(data=folder, out=folder / "out"), on_gpu.TINY, folder)


def test_fifty_teachers_ship(on_gpu, tmp_path):
    work = make_work(on_gpu, tmp_path / "work")
    names = [path.stem for path in (work.weights / "teachers").iterdir()]
    assert len(names) == on_gpu.WHOLE.effects == 50
    assert set(names) <= set(ALL_EFFECTS)


def test_teachers_that_passed_are_packed_and_stand_for_those_that_ship(on_gpu, tmp_path):
    work = make_work(on_gpu, tmp_path / "work")
    shipped = len(list((work.weights / "teachers").iterdir()))
    made = [tmp_path / f"effect-{i}.safetensors" for i in range(on_gpu.IN_A_FILE + 2)]
    for path in made:
        path.write_bytes(b"weights")
    on_gpu.keep_teachers(work, made[:1])
    assert len(list((work.weights / "teachers").iterdir())) == shipped  # one alone is no collection
    on_gpu.keep_teachers(work, made)
    assert {path.name for path in (work.weights / "teachers").iterdir()} == {path.name for path in made}
    packed = []
    for path in sorted(work.out.glob("*.tar")):
        with tarfile.open(path) as tar:
            packed.append(tar.getnames())
    assert [len(names) for names in packed] == [on_gpu.IN_A_FILE, 2]
    assert sorted(name for names in packed for name in names) == sorted(path.name for path in made)


def test_all_parts_together_end_within_nine_minutes(on_gpu):
    assert sum(on_gpu.WHOLE.seconds.values()) <= 530
    sys.path.insert(0, str(SCRIPTS / "gpu"))
    assert importlib.import_module("measure").MAX_SECONDS <= 530


def write_data(folder):
    """What `photographs.py` leaves, of two small photographs and one cut-out each."""
    noun = PngInfo()
    noun.add_text("noun", "ball")
    for split, names in (("train", TRAIN), ("heldout", HELDOUT)):
        (folder / "photographs" / split).mkdir(parents=True)
        (folder / "cutouts" / split / "thing").mkdir(parents=True)
        for name in names[:2]:
            photo = Image.fromarray(load_photograph(name)).resize((96, 96))
            photo.save(folder / "photographs" / split / f"{name}.jpg")
        white = Image.fromarray(np.full((32, 32, 4), 255, np.uint8))
        white.save(folder / "cutouts" / split / "thing" / "ball.png", pnginfo=noun)


@pytest.mark.slow
def test_the_whole_script_runs_small_and_leaves_what_it_made(tmp_path):
    write_data(tmp_path / "data")
    out = tmp_path / "out"
    command = [SCRIPTS / "nano" / "on_gpu.sh", "--tiny", "--data", tmp_path / "data", "--out", out]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((out / "on_gpu.json").read_text())
    assert list(found) == ["base", "teachers", "student"]
    assert not any({"exit_code", "stopped_after"} & entry.keys() for entry in found.values())
    assert [row["effect"] for row in found["teachers"]["rows"]] == found["teachers"]["asked"]
    assert found["student"]["methods"]["2-effects"]["nfe"] == 8
    names = {"base.safetensors", "student.safetensors", "sheet.png", "metrics.json", "on_gpu.json"}
    assert {path.name for path in out.iterdir()} == names
