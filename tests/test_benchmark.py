"""What the benchmark of speed counts is what a plan says, seen by hooks on the network."""

import importlib
from pathlib import Path

import pytest

from collectionlora.planning.plan import count_forwards

SMALL = {
    "data": {"resolution": 16},
    "student": {"rank": 2},
    "critic": {"rank": 2},
    "distill": {"rollout_steps": [8], "anchor_weight": 1.0, "batch_size": 2, "guidance_scale": 5.0},
}


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts" / "benchmark")
    return importlib.import_module("training")


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"distill": {"guidance_scale": 1.0}},
        {"distill": {"target_weight": 0.0, "student_update_every": 2}},
        {"distill": {"rollout_steps": [2], "anchor_weight": 0.0}},
    ],
)
def test_a_plan_counts_what_a_step_does(training, layer):
    run = training.nano_run(SMALL, layer)
    assert training.count_calls(run, 0) == count_forwards(run.settings)


def test_the_papers_losses_take_a_third_of_the_references_forwards(training):
    run = training.nano_run(SMALL)
    assert training.count_calls(run, 0) == (22, 8)


def test_the_papers_critic_order_stays_under_what_a_plan_says(training):
    run = training.nano_run(SMALL, {"distill": {"critic_samples": "simulated"}})
    forwards, backwards = training.count_calls(run, 0)
    assert 20 <= forwards <= count_forwards(run.settings)[0]
    assert backwards == 8
