"""The studies of the toy world at their smallest, and the charts that draw them."""

from xml.etree import ElementTree

import pytest
import torch

from collectionlora.effectbench.report.charts import bar_chart, line_chart, round_steps
from collectionlora.toy.studies import (
    OBJECTIVES,
    follow,
    mean_and_range,
    measure_scaling,
    pull,
    scaling_settings,
)
from collectionlora.toy.world import ToyWorld, toy_settings


@pytest.fixture(scope="module")
def world():
    return ToyWorld(2, base_steps=20, teacher_steps=20)


def test_updates_are_counted_in_all_or_for_each_effect():
    equal, per_effect = (scaling_settings(64, 3, each) for each in (False, True))
    assert (equal.match.updates, equal.distill.student_updates) == (500, 500)
    assert (per_effect.match.updates, per_effect.distill.student_updates) == (8000, 8000)
    assert equal.distill.seed == per_effect.distill.seed == 3


def test_one_student_is_measured_against_all_teachers_of_a_world(world):
    short = scaling_settings(2, 0, False, {"match": {"updates": 2}}, {"distill": {"student_updates": 1}})
    result = measure_scaling(world, short)
    assert result.keys() == {"effects_mean", "effects_worst", "general", "rarest_mode", "undistilled"}


@pytest.mark.thorough
def test_a_training_is_followed_from_its_start(world):
    rows = dict(follow(world, "plain", 25, 0))
    assert list(rows) == [0, 25]
    assert {"backward", "target", "effects_mean"} <= rows[0].keys()
    assert rows[0] != rows[25]
    starts = [next(follow(world, objective, 25, 0))[1] for objective in OBJECTIVES]
    assert starts[0] == starts[1] == starts[2] == rows[0]


def test_a_student_that_equals_teacher_and_critic_is_not_pulled(world):
    run = world.distillation(toy_settings({"distill": {"effect_ratio": 1, "asymmetric_prompts": False}}))
    run.teachers.teachers = {
        e.name: {} for e in world.effects
    }  # teachers that are the base, as the critic is
    batch, generator = run.streams.batch(0), run.streams.generator(0)
    with torch.no_grad():
        pulls = pull(world, run, batch, batch.target, 0.0, generator)
    assert pulls.shape == (len(batch.target),)
    assert pulls.abs().max() < 1e-5


def test_means_come_with_their_range():
    assert mean_and_range([{"x": 1.0}, {"x": 2.0}, {"x": 6.0}], "x") == (3, 1, 6)


@pytest.mark.parametrize("largest", [0.003, 0.7, 1, 17.4, 1234])
def test_ticks_are_round_and_few(largest):
    ticks = round_steps(largest)
    assert ticks[0] == 0
    assert ticks[-1] >= largest * 0.999
    assert 3 <= len(ticks) <= 7


def test_charts_are_documents_inside_their_frame():
    lines = {
        "a <b>": [(4, 0.5, 0.4, 0.6), (180, 2.0, 1.5, 2.5)],
        "c": [(4, 0.1, 0.1, 0.1), (180, 0.2, 0.1, 0.3)],
    }
    for chart in (
        line_chart("x", "y", lines, log_x=True),
        bar_chart("t", [("v", 1.0, 0.5, 2.0), ("w", 0, 0, 0)]),
    ):
        root = ElementTree.fromstring(chart)
        width, height = map(float, root.get("viewBox").split()[2:])
        numbers = [
            tuple(map(float, point.split(",")))
            for shape in root
            if "points" in shape.attrib
            for point in shape.get("points").split()
        ]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in numbers)
    assert len(ElementTree.fromstring(line_chart("x", "y", lines)).findall("{*}polyline")) == 2
