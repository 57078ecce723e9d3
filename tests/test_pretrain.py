"""Pretraining of the nano base, short of training it."""

import importlib
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from collectionlora.pictures.photographs import HELDOUT, pool

ROOT = Path(__file__).parents[1]
OPTIONS = {
    "start": None,
    "seed": 0,
    "adam_rate": 1e-3,
    "muon_rate": 1e-2,
    "pixels": 2 * 64**2,
    "largest": 128,
}


@pytest.fixture
def pretrain(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "nano")
    return importlib.import_module("pretrain")


def test_a_resumed_run_is_the_uninterrupted_one(pretrain, tmp_path):
    photographs = pool(HELDOUT[:2])
    args = Namespace(**OPTIONS, steps=2, decay=1)
    whole, resumed = pretrain.Pretraining(args), pretrain.Pretraining(args)
    losses = [whole.update(photographs, [])]
    whole.save(tmp_path)
    resumed.load(tmp_path)
    assert resumed.step == 1
    losses.append(whole.update(photographs, []))
    assert resumed.update(photographs, []) == losses[-1]
    expected, found = (run.averaged().modules.state_dict() for run in (whole, resumed))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert len(set(losses)) == 2


def test_the_rate_warms_up_holds_and_falls_where_the_run_ends(pretrain):
    run = pretrain.Pretraining(Namespace(**OPTIONS, steps=1000, decay=400))

    def factor(step):
        run.step = step
        return run.rate_factor()

    assert [factor(step) for step in (0, 99, 199, 600, 800, 1000)] == [1 / 200, 0.5, 1, 1, 0.5, 0]
    run.args.decay = 0
    assert factor(999) == 1


def test_sizes_are_of_64_to_128_pixels_and_half_of_them_small(pretrain):
    rng = np.random.default_rng(0)
    sizes = [pretrain.draw_size(rng) for _ in range(2000)]
    areas = np.array([height * width for height, width in sizes])
    assert {side % 8 for size in sizes for side in size} == {0}
    assert areas.max() == 128**2
    assert max(max(size) / min(size) for size in sizes) == 2
    assert 0.48 < np.mean(areas <= 64**2) < 0.54


def test_larger_sizes_reach_what_is_asked_for_and_keep_their_shape(pretrain):
    rng = np.random.default_rng(0)
    sizes = [pretrain.draw_size(rng, 256) for _ in range(2000)]
    assert max(max(size) for size in sizes) == 256
    assert {side % 8 for size in sizes for side in size} == {0}
    assert max(max(size) / min(size) for size in sizes) == 2


def test_a_time_sets_the_number_of_updates(pretrain, tmp_path, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(pretrain.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(pretrain, "PACE", 2)
    monkeypatch.setattr(pretrain, "load_photographs", lambda _: pool(HELDOUT[:2]))
    monkeypatch.setattr(pretrain, "load_cutouts", lambda _: [])
    monkeypatch.setattr(pretrain, "report", lambda *_: None)

    def update(run, *_):
        run.step += 1
        return 0.0

    monkeypatch.setattr(pretrain.Pretraining, "update", update)
    every = {"evaluate_every": 10**9, "save_every": 10**9, "data": tmp_path, "folder": tmp_path}
    run = pretrain.Pretraining(
        Namespace(**{**OPTIONS, **every, "pixels": 64**2}, steps=10**9, decay=0, time=3)
    )
    pretrain.train(run, run.args)
    assert (run.step, run.args.decay) == (6, 2)  # two updates took one second
