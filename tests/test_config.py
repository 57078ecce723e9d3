from typing import get_args

import pytest

from collectionlora.collection import Recipe
from collectionlora.config import (
    PAPER,
    RECIPES,
    Settings,
    SettingsError,
    parse_overrides,
    resolve,
    result_settings,
    setting_names,
)


def test_defaults_are_the_papers_recipe():
    settings = Settings()
    assert settings.distill.student_updates == 5000
    assert settings.distill.student_update_every == 5
    assert settings.distill.effect_ratio == 0.5
    assert settings.distill.max_grad_norm == 10
    assert settings.student.learning_rate == settings.critic.learning_rate == 1e-4
    assert settings.targets.guidance_scale == 5
    assert (settings.sampling.steps, settings.sampling.shift) == (8, 3)


def test_settings_that_change_no_result_are_marked():
    held = set(result_settings(Settings()))
    assert set(setting_names()) - held == {
        *("model.sharding", "model.gradient_checkpointing", "model.compile"),
        *("distill.checkpoint_minutes", "distill.keep_checkpoints", "distill.ema_on_host"),
        *(name for name in setting_names() if name.split(".")[0] in ("log", "vlm", "bench")),
    }
    assert result_settings(Settings(), ["data"]) == {"data.resolution": 64, "data.crop": "none"}


def test_the_papers_recipe_is_constant_and_its_critic_sees_random_steps():
    distill = resolve(PAPER).distill
    assert [
        w.at(p)
        for w in (distill.backward_weight, distill.target_weight, distill.anchor_weight)
        for p in (0, 1)
    ] == [1] * 6
    assert (distill.decay_ratio, distill.ema, distill.critic_samples) == (0, 0, "simulated")
    assert (distill.student_updates, distill.student_update_every, distill.guidance_scale) == (5000, 5, 5)
    assert (distill.rollout_steps, distill.route_every, distill.effect_ratio) == ((8,), 4, 0.5)
    assert resolve(PAPER).match.updates == 0
    assert resolve(PAPER).targets.general == 20_000
    assert get_args(Recipe) == tuple(RECIPES)


def test_later_layers_win_and_leave_the_rest():
    settings = resolve({"distill": {"seed": 1, "batch_size": 2}}, {"distill": {"seed": 3}})
    assert (settings.distill.seed, settings.distill.batch_size) == (3, 2)


@pytest.mark.parametrize(
    ("layer", "field", "hint"),
    [
        ({"distill": {"batch_sise": 2}}, "distill.batch_sise", "distill.batch_size"),
        ({"distil": {"seed": 2}}, "distil", "distill"),
        ({"student": {"rnk": 2}}, "student.rnk", "student.rank"),
    ],
)
def test_an_unknown_setting_names_the_nearest(layer, field, hint):
    with pytest.raises(SettingsError) as error:
        resolve(layer)
    assert error.value.field == field
    assert hint in error.value.hint


@pytest.mark.parametrize(
    "layer",
    [
        {"distill": {"batch_size": 0}},
        {"distill": {"effect_ratio": 1.5}},
        {"distill": {"rollout_steps": []}},
        {"student": {"rank": "many"}},
        {"student": {"rank": 64}, "critic": {"rank": 32}},
    ],
)
def test_values_that_do_not_fit_are_refused(layer):
    with pytest.raises(SettingsError):
        resolve(layer)


def test_a_weight_is_a_schedule_or_a_constant():
    settings = resolve({"distill": {"anchor_weight": {"start": 1, "end": 0}, "target_weight": 0.5}})
    assert [settings.distill.anchor_weight.at(p) for p in (0, 0.25, 1)] == [1, 0.75, 0]
    assert settings.distill.target_weight.at(0.3) == 0.5


def test_overrides_are_parsed_as_yaml():
    parsed = parse_overrides(["distill.rollout_steps=[8, 4]", "student.rank=4", "match.loss=flow"])
    assert parsed == {"distill": {"rollout_steps": [8, 4]}, "student": {"rank": 4}, "match": {"loss": "flow"}}
    for bad in ("seed=3", "distill.seed", "distill.seed=[1"):
        with pytest.raises(SettingsError):
            parse_overrides([bad])


def test_settings_are_frozen_and_listed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().distill.seed = 3
    names = setting_names()
    assert {"distill.student_updates", "critic.rank", "distill.anchor_weight", "data.resolution"} <= set(
        names
    )


@pytest.mark.parametrize(
    "assignment",
    [
        *("distill.batch_size=yes", "match.batch_size=on", "student.rank=true", "distill.seed=010"),
        *("distill.seed=0x10", "teach.steps=1:30", "teach.steps=1_000", "teach.steps=4.0", "teach.steps='8'"),
        *("distill.seed=2024-01-01", "distill.seed=-1", "distill.rollout_steps=[true]", "student.rank=1e1"),
        *("targets.guidance_scale=true", "targets.guidance_scale='5'", "targets.guidance_scale=1:30"),
        *("targets.guidance_scale=05", "targets.guidance_scale=.nan", "distill.anchor_weight=yes"),
        *("distill.anchor_weight=true", "log.tracker=no", "model.quantization=off"),
    ],
)
def test_words_and_numbers_that_people_read_otherwise_are_refused(assignment):
    field = assignment.partition("=")[0]
    with pytest.raises(SettingsError, match=field):
        resolve(parse_overrides([assignment]))


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("student.learning_rate=1e-4", 1e-4),
        ("student.learning_rate=2.5E-4", 2.5e-4),
        ("targets.guidance_scale=4", 4.0),
        ("targets.guidance_scale=.5", 0.5),
        ("distill.rollout_steps=[8, 4]", (8, 4)),
        ("match.batch_size=null", None),
        ("model.gradient_checkpointing=yes", True),
        ("model.gradient_checkpointing=off", False),
        ("bench.clip=no", "no"),
        ("log.tracker=none", "none"),
    ],
)
def test_numbers_and_words_are_taken_as_they_are_written(assignment, value):
    section, name = assignment.partition("=")[0].split(".")
    assert getattr(getattr(resolve(parse_overrides([assignment])), section), name) == value


def test_the_teachers_noise_is_reused_where_there_are_teacher_samples():
    assert resolve({"match": {"loss": "flow", "coupled_above": 0.75}}).match.coupled_above == 0.75
    with pytest.raises(SettingsError, match=r"match\.coupled_above needs match\.loss=flow"):
        resolve({"match": {"coupled_above": 0.75}})
