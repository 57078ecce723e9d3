"""A run that is killed at any moment, or whose newest file is cut, ends bit for bit as an undisturbed one."""

import filecmp
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.kill_runs import SETTINGS, begin, cut_newest, kill_until_done, num_lines, run_to_end
from helpers.small_collection import build
from safetensors.torch import load_file

RUN = "runs/default"


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return build(tmp_path_factory.mktemp("kill") / "mine", settings=SETTINGS)


@pytest.fixture(scope="module")
def copy(collection, tmp_path_factory):
    """Makes copies of the collection."""

    def make():
        return shutil.copytree(collection, tmp_path_factory.mktemp("copy") / "mine")

    return make


@dataclass
class Whole:
    """A collection whose distillation was never disturbed.

    Attributes:
        start: seconds until its first step.
        kills: how often its twin is killed.
        cold: each process is `python -m collectionlora`, not a fork.
    """

    folder: Path
    start: float
    options: list[str]
    kills: int
    cold: bool


@pytest.fixture(scope="module", params=["forked", pytest.param("cold", marks=pytest.mark.slow)])
def undisturbed(request, copy):
    cold = request.param == "cold"
    options, kills = (["--set", "distill.student_updates=43"], 20) if cold else ([], 6)
    folder = copy()
    told = folder.parent / "told"
    run_to_end(["--version"], told, cold)  # wakes the server
    seconds = run_to_end(["distill", folder, *options], told, cold)
    return Whole(folder, seconds - json.loads(log_of(folder)[-1])["seconds"], options, kills, cold)


def log_of(folder):
    return (folder / RUN / "log.jsonl").read_text().splitlines()


def losses(folder):
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in log_of(folder)]


def newest_state(run):
    """The tensors of a run's last checkpoint: LoRAs, moments, moving average."""
    return load_file(max((run / "checkpoints").glob("*.safetensors")))


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)


@pytest.mark.thorough
def test_a_distillation_killed_again_and_again_ends_bit_for_bit_the_same(undisturbed, copy, capsys):
    whole, folder, rng = undisturbed.folder, copy(), np.random.default_rng(1)
    command, told = ["distill", folder, "--resume", *undisturbed.options], folder.parent / "told"
    kills, cold = undisturbed.kills, undisturbed.cold
    lines = kill_until_done(command, folder / RUN, told, undisturbed.start, kills, rng, cold)
    same = filecmp.cmp(whole / "collection.safetensors", folder / "collection.safetensors", shallow=False)
    with capsys.disabled():
        if cold:
            print("\n".join(["", *lines, f"ended by itself; the adapters are equal bit for bit: {same}"]))
    assert same
    assert_same(newest_state(whole / RUN), newest_state(folder / RUN))
    # A log that was itself cut lacks the lines of steps that are in a checkpoint.
    lost = any("log.jsonl cut" in line for line in lines)
    assert [entry for entry in losses(whole) if entry in losses(folder) or not lost] == losses(folder)
    last = len(losses(whole))
    kept = sorted(path.name for path in (folder / RUN / "checkpoints").iterdir())
    names = [f"step-{n:08d}.{kind}" for n in range(last - 2, last + 1) for kind in ("json", "safetensors")]
    assert kept == names


def test_one_holds_a_run_ctrl_c_saves_it_and_a_new_one_does_not_take_its_place(undisturbed, copy):
    whole, cold, folder = undisturbed.folder, undisturbed.cold, copy()
    told, command = folder.parent / "told", ["distill", folder, *undisturbed.options]
    life = begin(command, told, cold)
    assert life.wait(60, until=lambda: num_lines(folder / RUN / "log.jsonl") >= 2) is None, told.read_text()
    second = begin([*command, "--resume"], folder.parent / "second", cold)
    assert second.wait(60) == 2
    words = (folder.parent / "second").read_text()
    assert f"this run is held by process {life.process.pid} on {os.uname().nodename} since " in words
    assert life.stop() == 130
    assert f"distill {folder} --run default --resume" in told.read_text().partition("; go on with: ")[2]

    assert begin(command, told, cold).wait(60) == 2
    assert "holds a run that stopped before step" in told.read_text()
    run_to_end([*command, "--resume"], told, cold)
    assert filecmp.cmp(whole / "collection.safetensors", folder / "collection.safetensors", shallow=False)
    assert losses(whole) == losses(folder)


@pytest.mark.thorough
def test_teaching_that_was_killed_ends_bit_for_bit_the_same(undisturbed, copy):
    whole, killed, start = copy(), copy(), undisturbed.start
    run_to_end(["teach", whole, "sepia"], whole.parent / "told")
    run = killed / "runs" / "teach-sepia"
    kill_until_done(
        ["teach", killed, "sepia"], run, killed.parent / "told", start / 2, 4, np.random.default_rng(2)
    )
    name = "teachers/sepia.safetensors"
    assert filecmp.cmp(whole / name, killed / name, shallow=False)
    assert_same(newest_state(whole / "runs" / "teach-sepia"), newest_state(run))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.thorough
def test_targets_that_were_killed_or_damaged_are_made_the_same(copy):
    whole, killed = copy(), copy()
    rng, told, command = np.random.default_rng(3), killed.parent / "told", ["targets", killed]
    seconds = run_to_end(["targets", whole], told)
    for _ in range(5):
        life = begin(command, told)
        life.wait(rng.uniform(0.2, 1) * seconds)
        life.kill()
    run_to_end(command, told)
    assert files_of(killed / "cache") == files_of(whole / "cache")
    cut = cut_newest(killed / "cache", rng)
    run_to_end(command, told)
    assert f"{cut.name}: is damaged" in told.read_text().replace("\n", "")
    assert files_of(killed / "cache") == files_of(whole / "cache")


@pytest.mark.thorough
def test_a_bench_that_was_killed_or_damaged_measures_the_same(undisturbed, tmp_path):
    folder, told, rng = tmp_path / "mine", tmp_path / "told", np.random.default_rng(4)
    shutil.copytree(undisturbed.folder, folder)
    command = ["bench", folder, "--crops", "1"]
    seconds = run_to_end(command, told)
    before = rows_of(folder)
    (folder / "bench" / "metrics.json").unlink()
    for path in (folder / "bench").rglob("*.safetensors"):
        os.truncate(path, path.stat().st_size // 2)
    for _ in range(3):
        life = begin(command, told)
        life.wait(rng.uniform(0.3, 1) * seconds)
        life.kill()
    run_to_end(command, told)
    assert rows_of(folder) == before


def rows_of(folder):
    """The table of a bench, without the times."""
    methods = json.loads((folder / "bench" / "metrics.json").read_text())["methods"]
    return {name: {k: v for k, v in row.items() if "seconds" not in k} for name, row in methods.items()}
