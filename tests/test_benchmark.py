"""What the benchmark of speed counts is what a plan says, seen by hooks on the network."""

import importlib
from pathlib import Path
from statistics import fmean

import pytest

from collectionlora.planning.forwards import count_forwards

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


@pytest.mark.parametrize(("size", "lengths"), [(1, [8]), (3, [8, 4, 2])])
def test_a_plan_counts_the_mean_of_the_papers_critic_order(training, size, lengths):
    """Each of six simulations ends at a random step: 62 forwards at most, and 41 in the mean of one photo."""
    order = {"critic_samples": "simulated", "batch_size": size, "rollout_steps": lengths}
    run = training.nano_run(SMALL, {"distill": order})

    def count(step):
        steps = run.streams.schedule_length(step, lengths)
        ends = [int(run.streams.stops(step, part, steps, size).max()) + 1 for part in range(6)]
        return sum(ends) + 2 * 3 + 8

    forwards, backwards = count_forwards(run.settings)
    assert training.count_calls(run, 0) == (count(0), backwards)
    assert fmean(map(count, range(1000))) == pytest.approx(forwards, rel=0.01)
    assert (forwards == 41) == (size == 1)
