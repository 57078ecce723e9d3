"""Verbs as real processes that are killed at random moments, and what a loss of power does to files."""

import os
import time

from collectionlora.command_line.verbs import main
from collectionlora.effectbench import bench, benching
from helpers.lives import Life

SETTINGS = {
    "data": {"resolution": 16},
    "student": {"rank": 2},
    "critic": {"rank": 2},
    "targets": {"steps": 1, "samples": 1, "general": 2, "guidance_scale": 1},
    "teach": {"steps": 12, "rank": 2, "batch_size": 1},
    "match": {"updates": 3},
    "sampling": {"steps": 2},
    "distill": {
        **{"student_updates": 15, "batch_size": 1, "student_update_every": 1, "rollout_steps": [2, 1]},
        "checkpoint_minutes": 0,
    },
    "log": {"tracker": "none", "preview_every": 100},
}


def run_quickly():
    """The command line; its bench trains the classifier for a moment and knows one ordinary edit."""
    benching.CLASSIFIER_STEPS, bench.GENERAL_KINDS = 2, ("blur",)
    main()


def begin(arguments, told, cold=False):
    return Life(arguments, told, cold, run=run_quickly)


def run_to_end(arguments, told, cold=False):
    """The seconds of an undisturbed run, which must succeed."""
    began = time.perf_counter()
    code = begin(arguments, told, cold).wait(300)
    assert code == 0, told.read_text()
    return time.perf_counter() - began


def cut_newest(folder, rng):
    """What a loss of power can leave: the newest file of a folder is shorter than it was; returns which."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    newest = max(files, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)
    if newest is not None:
        os.truncate(newest, int(rng.integers(newest.stat().st_size)))
    return newest


def num_lines(path):
    return len(path.read_text(errors="replace").splitlines()) if path.exists() else 0


def kill_until_done(arguments, folder, told, start, kills, rng, cold=False):
    """Kill a verb so many times at random moments, then let it end; a line about each life.

    Args:
        folder: of the run; every third death also cuts its newest file.
        told: where each life's stderr goes.
        start: seconds until the first step. Half of all lives end before it, the others a few steps later.
    """
    log, lines = folder / "log.jsonl", []
    for number in range(1, kills + 1):
        life, after, jitter = begin(arguments, told, cold), rng.uniform(0, start), rng.uniform(0, 0.05)
        if rng.random() < 0.5:
            # Where the machine is faster than it was when `start` was measured, two steps are enough.
            most = num_lines(log) + 2
            code = life.wait(after, until=lambda most=most: num_lines(log) >= most)
            moment = f"within {after:.2f} s of its start"
        else:
            wanted = num_lines(log) + int(rng.integers(1, 3))
            code = life.wait(300, until=lambda wanted=wanted: num_lines(log) >= wanted)
            moment = f"{1000 * jitter:.0f} ms after the log's line {wanted}"
            code = life.wait(jitter)
        assert code is None, f"ended with {code} before it was killed: {told.read_text()}"
        life.kill()
        line = f"kill {number:2}: {moment}; {num_lines(log)} steps in the log"
        if number % 3 == 0 and folder.is_dir() and (cut := cut_newest(folder, rng)):
            line += f"; then {cut.relative_to(folder)} cut to {cut.stat().st_size} bytes"
        lines.append(line)
    run_to_end(arguments, told, cold)
    return lines
