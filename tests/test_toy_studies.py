"""The studies of the toy world at their smallest, and the charts that draw them."""

import importlib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from collectionlora.effectbench.report.charts import bar_chart, line_chart, round_steps
from collectionlora.sampling import Denoiser
from collectionlora.toy.studies import (
    OBJECTIVES,
    follow,
    mean_and_range,
    measure_scaling,
    pull,
    scaling_settings,
)
from collectionlora.toy.world import (
    ToyWorld,
    condition_on,
    draw_general,
    guided_denoiser,
    toy_settings,
)

ROOT = Path(__file__).parents[1]


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


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("toy_published")


@pytest.fixture
def guidance(published):
    return importlib.import_module("toy_guidance")


def one_step(study, world, name, **changes):
    """A student of the comparison after one update from the base, whose critic stands still."""
    method, layers = study.STUDENTS[name]
    brief = {"match": {"updates": 0}, "critic": {"learning_rate": 1e-30}, "distill": {"batch_size": 8}}
    settings = toy_settings(*layers, brief, {"distill": {"effect_ratio": 1, "rollout_steps": [8], **changes}})
    run = world.distillation(settings, method=method)
    return run, run(0)


def test_on_policy_matching_asks_no_critic(world, published):
    run, metrics = one_step(published, world, "on-policy matching")
    assert metrics.keys() == {"student_grad_norm"}
    assert not run.optimizers["critic-8"].state
    assert run.optimizers["student"].state


def test_the_first_step_learns_from_the_teachers_first_steps(world, published):
    name, both = "first step from the teacher, Euler", {"student_grad_norm", "critic", "critic_grad_norm"}
    assert one_step(published, world, name)[1].keys() == {"first", "backward", "target", *both}
    assert one_step(published, world, name, rollout_steps=[1])[1].keys() == {"first", *both}


def test_a_critic_follows_the_student(world, published):
    run, _ = one_step(published, world, "two critic updates, critic follows")
    still, _ = one_step(published, world, "two critic updates")

    def behind(run):
        """How far most of the critic's numbers are from the student's, which moved by its rate."""
        pairs = zip(run.roles.parameters("critic-8"), run.roles.parameters("student"), strict=True)
        distances = torch.cat([(student - critic).detach().abs().flatten() for critic, student in pairs])
        return distances[distances > 0].median().item()

    assert behind(still) == pytest.approx(still.settings.student.learning_rate, rel=1e-4)
    assert behind(run) == pytest.approx(0.999 * behind(still), rel=1e-4)


def test_the_pseudo_huber_gradient_has_one_length(world, published):
    run, _ = one_step(published, world, "pseudo-Huber")
    batch, generator = run.batch(run.streams, 0), run.generator(run.streams, 0)
    far = (batch.target + 100).requires_grad_()
    scores = run.scores(batch, "critic-8")
    run.distribution_matching(far, scores, torch.full((8,), 0.5), generator).backward()
    assert torch.allclose(8 * far.grad.flatten(1).norm(dim=1), torch.ones(8), atol=1e-3)


def test_without_guidance_renoising_it_apart_changes_nothing(world, guidance):
    plain, apart = (
        one_step(guidance, world, name, target_weight=0)[1] for name in ("guided", "guidance apart")
    )
    assert apart["backward"] == pytest.approx(plain["backward"], rel=1e-5)


def test_guidance_is_taken_above_the_sigma_of_the_students_step(world, guidance):
    run, _ = one_step(guidance, world, "guidance apart", guidance_scale=2.0)
    share = run.simulate(run.streams, run.batch(run.streams, 0), run.generator(run.streams, 0), 0, 8)
    velocity, seen = run.backbone.velocity, []

    def watch(x_sigma, sigma, prepared):
        seen.append(sigma)
        return velocity(x_sigma, sigma, prepared)

    run.backbone.velocity = watch
    list(run.student_losses(share, "critic-8", 0))
    student, critic, teacher, guided, unguided = seen
    assert torch.equal(student, share.simulation.chosen()[1])
    assert torch.equal(critic, teacher)
    assert torch.equal(guided, unguided.repeat(2))
    assert (unguided >= student).all()
    assert (teacher < student).any()


def test_guided_teachers_are_led_away_from_the_empty_prompt(world):
    run, points = world.distillation(toy_settings()), torch.zeros(4, 2)
    x, sigma = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0)), torch.full((4,), 0.5)
    with run.teachers.use("effect-0"), torch.no_grad():
        asked, empty = (
            Denoiser(run.backbone, condition_on(prompt, points)).velocity(x, sigma)
            for prompt in (world.effects[0].teacher_prompt, "")
        )
        led = guided_denoiser(run.backbone, condition_on("style 0", points), 3.0).velocity(x, sigma)
    assert torch.allclose(led, empty + 3 * (asked - empty), atol=1e-5)


def test_a_base_of_guided_teachers_learns_the_empty_prompt():
    (told, answers), (untold, same) = (
        draw_general(2000, torch.Generator().manual_seed(0), share) for share in (0, 0.25)
    )
    empty = (untold.prompt.tokens == 0).all(dim=(1, 2))
    assert 0.2 < empty.float().mean() < 0.3
    assert torch.equal(untold.prompt.tokens[~empty], told.prompt.tokens[~empty])
    assert torch.equal(answers, same)
