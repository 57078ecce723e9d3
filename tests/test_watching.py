"""What people watch of a run: it is there, it is right, and the run does not notice it."""

import json
import time

import numpy as np
import pytest
import torch
from helpers.random_loras import write_random_loras
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import collectionlora
from collectionlora.command_line import demo as demo_module
from collectionlora.config import SettingsError, resolve
from collectionlora.pictures.photographs import TRAIN, pool
from collectionlora.pictures.photos import write_photo
from collectionlora.runs.checkpoint import latest_checkpoint
from collectionlora.runs.session import Session, resolve_settings, warn_of_untrained_steps
from collectionlora.runs.watching import cell_side, curves, teacher_distance
from collectionlora.streams import EffectData
from collectionlora.system.errors import UserError

SMALL = {
    "data": {"resolution": 32},
    "student": {"rank": 2},
    "critic": {"rank": 2},
    "targets": {"steps": 1, "samples": 1, "general": 2, "guidance_scale": 1},
    "match": {"updates": 4, "loss": "velocity"},
    "sampling": {"steps": 2},
    "distill": {
        "student_updates": 2,
        "batch_size": 1,
        "student_update_every": 1,
        "rollout_steps": [2],
        "checkpoint_minutes": 0,
    },
}


@pytest.fixture
def collection(tmp_path, monkeypatch):
    teachers = write_random_loras(tmp_path, ("sepia", "technicolor"))
    monkeypatch.setattr(demo_module, "PHOTOS", 2)
    monkeypatch.setattr(demo_module, "GENERAL_PHOTOS", 2)
    return demo_module.build_collection(tmp_path / "mine", teachers, pool(TRAIN), seed=0)


def test_a_demo_of_other_effects_is_refused(tmp_path, collection):
    collection.folder.rename(tmp_path / "collection")
    with pytest.raises(UserError, match="--effects: holds a demo of 2 other effects; give the same"):
        demo_module.demo(tmp_path, 3, 0, {}, lambda *_: None)


def test_a_demo_of_another_seed_is_refused(tmp_path, collection, monkeypatch):
    class Passed(Exception):
        pass

    def stop(*_args, **_kwargs):
        raise Passed

    monkeypatch.setattr(demo_module, "shipped_teachers", lambda: dict.fromkeys(("sepia", "technicolor")))
    monkeypatch.setattr(demo_module, "distill", stop)
    collection.folder.rename(tmp_path / "collection")
    with pytest.raises(UserError, match="--seed: holds a demo of another seed; give the same --seed"):
        demo_module.demo(tmp_path, 2, 1, {}, lambda *_: None)
    with pytest.raises(Passed):
        demo_module.demo(tmp_path, 2, 0, {}, lambda *_: None)


@pytest.mark.parametrize(("steps", "said"), [(2, False), (4, True)])
def test_steps_that_are_not_trained_are_said(caplog, steps, said):
    warn_of_untrained_steps(resolve(SMALL, {"sampling": {"steps": steps}}))
    text = (
        f"sampling.steps is {steps}, which distill.rollout_steps [2] does not train: write the same in both"
    )
    assert (text in caplog.text) == said


def scalars_of(run):
    """Everything that a TensorBoard folder shows, by name."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def curves_of(run):
    """The steps of each curve."""
    return {tag: [event.step for event in events] for tag, events in scalars_of(run).items()}


def test_a_watched_run_equals_an_unwatched_one_and_shows_what_it_did(collection):
    run = Session(collection, resolve_settings(collection, SMALL), with_critics=True).distillation(
        lambda *_: None
    )
    for step in range(run.num_steps):
        run(step)
    collectionlora.distill(collection, overrides={**SMALL, "log": {"preview_every": 1}})
    folder = collection.folder / "runs" / "default"
    step, tensors = latest_checkpoint(folder / "checkpoints")
    assert step == 6
    assert all(torch.equal(tensors[name], tensor) for name, tensor in run.tensors().items())

    shown = curves_of(folder)
    assert shown["loss/match"] == [0, 1, 2, 3]
    assert shown["loss/backward"] == shown["grad_norm/critic"] == [4, 5]
    assert shown["grad_norm/student"] == shown["distance/sepia"] == list(range(6))
    by_stream = shown.get("stream/effect/match", []) + shown.get("stream/general/match", [])
    assert sorted(by_stream) == [0, 1, 2, 3]
    for effect in ("sepia", "technicolor"):
        taken = [s for s in range(6) if run.streams.batch(s).effect == effect]
        losses = shown.get(f"effect/{effect}/match", []) + shown.get(f"effect/{effect}/backward", [])
        assert losses == taken
    previews = sorted(path.name for path in (folder / "previews").iterdir())
    assert previews == [f"step-{n:08d}.png" for n in range(1, 7)]
    picture = np.asarray(Image.open(folder / "previews" / previews[-1]))
    assert picture.std() > 20


def test_effects_take_turns_in_previews_and_the_last_shows_all(collection):
    layer = {**SMALL, "log": {"preview_every": 2, "preview_effects": 1}}
    collectionlora.distill(collection, overrides=layer)
    folder = collection.folder / "runs" / "default"
    shown = curves_of(folder)
    assert [shown["distance/sepia"], shown["distance/technicolor"]] == [[1, 5], [3, 5]]
    heights = [Image.open(path).height for path in sorted((folder / "previews").iterdir())]
    assert heights[0] == heights[1] < heights[2]


def test_a_mixed_warm_start_has_a_stream_of_its_own(collection):
    layer = {**SMALL, "match": {"updates": 4, "loss": "flow"}, "log": {"preview_every": 100}}
    collectionlora.distill(collection, overrides=layer)
    shown = curves_of(collection.folder / "runs" / "default")
    assert shown["stream/mixed/match"] == shown["loss/match"] == [0, 1, 2, 3]
    assert not any(name.startswith("effect/") and name.endswith("/match") for name in shown)


@pytest.mark.thorough
def test_a_run_that_was_killed_shows_each_step_once(collection):
    def die(what, done, _total, _metrics):
        if what == "distill" and done == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        collectionlora.distill(collection, overrides=SMALL, progress=die)
    # TensorBoard reads files in the order of their names, which begin with the second they were made in.
    time.sleep(1.1)
    collectionlora.distill(collection, overrides=SMALL, resume=True)
    assert curves_of(collection.folder / "runs" / "default")["grad_norm/student"] == list(range(6))


def test_teaching_shows_its_loss_and_a_killed_one_each_step_once(collection):
    for side in ("source", "target"):
        for index in range(2):
            photo = np.full((32, 32, 3), 60 if side == "source" else 190, dtype=np.uint8)
            write_photo(collection.folder / "pairs" / "sepia" / side / f"{index}.png", photo)
    layer = {**SMALL, "teach": {"steps": 4, "rank": 2, "batch_size": 1}, "distill": {"checkpoint_minutes": 0}}

    def die(_what, done, _total, _metrics):
        if done == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        collectionlora.teach(collection, ["sepia"], layer, progress=die)
    time.sleep(1.1)
    collectionlora.teach(collection, ["sepia"], layer)
    run = collection.folder / "runs" / "teach-sepia"
    assert curves_of(run) == {"loss": [0, 1, 2, 3], "grad_norm": [0, 1, 2, 3]}
    logged = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert [event.value for event in scalars_of(run)["loss"]] == pytest.approx(logged)


def test_no_tracker_leaves_previews_alone(collection):
    collectionlora.distill(collection, overrides={**SMALL, "log": {"tracker": "none"}})
    folder = collection.folder / "runs" / "default"
    assert not (folder / "tensorboard").exists()
    assert len(list((folder / "previews").iterdir())) == 1


def test_a_tracker_that_is_not_there_is_named(collection):
    with pytest.raises(UserError, match=r"aim is not installed; pip install aim, or --set log\.tracker=none"):
        collectionlora.distill(collection, overrides={**SMALL, "log": {"tracker": "aim"}})
    with pytest.raises((UserError, SettingsError), match=r"log\.tracker"):
        collectionlora.distill(collection, overrides={**SMALL, "log": {"tracker": "excel"}})


def test_metrics_go_under_their_stream_and_effect():
    metrics = {"backward": 1.0, "critic_grad_norm": 2.0}
    assert curves(metrics, "general", None) == {
        "loss/backward": 1.0, "stream/general/backward": 1.0, "grad_norm/critic": 2.0
    }  # fmt: skip
    assert curves(metrics, "effect", "sepia")["effect/sepia/backward"] == 1.0


def test_a_critic_with_batches_of_its_own_has_no_curve_by_stream_or_effect():
    shown = curves({"backward": 1.0, "critic": 2.0}, "effect", "sepia", critic_apart=True)
    assert shown == {
        "loss/backward": 1.0,
        "stream/effect/backward": 1.0,
        "effect/sepia/backward": 1.0,
        "loss/critic": 2.0,
    }


@pytest.mark.parametrize(("effects", "side"), [(1, 1672), (8, 591), (50, 236), (1000, 128)])
def test_the_pictures_of_many_effects_are_smaller(effects, side):
    assert cell_side(effects) == side


def test_the_distance_is_nought_at_a_teachers_picture_and_one_at_the_photo():
    sources, targets = torch.randn(3, 1, 4, 4), torch.randn(3, 2, 1, 4, 4)
    data = EffectData("any", sources, targets, None, None, None)
    assert teacher_distance(targets[:2, 1], data) == pytest.approx(0)
    assert teacher_distance(sources[:2], data) == pytest.approx(1)
