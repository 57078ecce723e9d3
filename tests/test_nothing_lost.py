"""Finished results stay: a verb that is typed again says so, or keeps what it replaces."""

import json
import shutil
import sys

import pytest
import torch
import yaml
from helpers import small_collection

import collectionlora
from collectionlora.adapters.formats import read_lora, read_teacher
from collectionlora.collection import Collection
from collectionlora.command_line.verbs import main
from collectionlora.distillation import Distillation
from collectionlora.manifest.template import create
from collectionlora.runs import teacher_files, verbs
from collectionlora.runs.checkpoint import latest_checkpoint
from collectionlora.runs.session import Session
from collectionlora.system.errors import UserError
from collectionlora.system.files import keep_earlier

SMALL = {
    "data": {"resolution": 16},
    "student": {"rank": 2},
    "critic": {"rank": 2},
    "targets": {"steps": 1, "samples": 1, "general": 2, "guidance_scale": 1},
    "teach": {"steps": 1, "rank": 2, "batch_size": 1},
    "match": {"updates": 0},
    "sampling": {"steps": 1},
    "distill": {"student_updates": 2, "batch_size": 1, "student_update_every": 1, "rollout_steps": [1]},
    "log": {"tracker": "none"},
}


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    folder = small_collection.build(tmp_path_factory.mktemp("distilled") / "mine", settings=SMALL)
    collectionlora.distill(folder)
    return folder


@pytest.fixture
def folder(distilled, tmp_path):
    return shutil.copytree(distilled, tmp_path / "mine")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_finished_run_is_not_trained_again(folder, caplog):
    before = contents(folder)
    assert collectionlora.distill(folder) == folder / "runs" / "default" / "collection.safetensors"
    assert contents(folder) == before
    assert "runs/default: is finished; --again starts over and keeps what is there" in caplog.text


def test_a_finished_run_is_not_replaced_by_one_with_other_settings(folder):
    before = contents(folder)
    with pytest.raises(UserError, match=r"distill\.seed was 0 and is 1; give the new run a name with --run"):
        collectionlora.distill(folder, overrides={"distill": {"seed": 1}})
    assert contents(folder) == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "make it sepia",
            "make it brown",
            "teacher prompt of sepia was 'make it sepia' and is 'make it brown'",
        ),
        ("teachers/sepia", "teachers/technicolor", "files of sepia was"),
        ("name: sepia", "name: sepia\n  student_prompt: <tone_x> y", "student prompt of sepia was"),
        ("prompts: general.txt", "prompts: other.txt", "files of general was"),
    ],
)
def test_a_finished_run_is_not_taken_for_one_of_other_data(folder, old, new, words, resume):
    manifest = folder / "collection.yaml"
    (folder / "other.txt").write_text("sharpen the photo\n")
    assert old in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(old, new))
    before = contents(folder)
    with pytest.raises(UserError, match=f"holds a finished run, but {words}"):
        collectionlora.distill(folder, resume=resume)
    assert contents(folder) == before


def test_a_finished_run_does_not_go_on_with_an_effect_that_it_never_saw(folder):
    manifest = yaml.safe_load((folder / "collection.yaml").read_text())
    manifest["effects"].append({**manifest["effects"][0], "name": "brown", "student_prompt": "<brown_x> y"})
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))
    before = contents(folder)
    with pytest.raises(UserError, match=r"effects was \['sepia', 'technicolor'\] and is \['sepia',"):
        collectionlora.distill(folder, resume=True)
    assert contents(folder) == before


def test_a_finished_run_goes_on_to_more_updates(folder):
    more = {"distill": {"student_updates": 3}}
    collectionlora.distill(folder, overrides=more, resume=True)
    steps = (folder / "runs" / "default" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == [0, 1, 2]


def test_a_finished_run_without_more_updates_keeps_its_settings(folder):
    before = contents(folder)
    with pytest.raises(
        UserError, match=r"holds a finished run, but distill\.guidance_scale was .* and is 2\.5"
    ):
        collectionlora.distill(folder, overrides={"distill": {"guidance_scale": 2.5}}, resume=True)
    assert contents(folder) == before
    collectionlora.distill(folder, overrides={"distill": {"keep_checkpoints": 2}}, resume=True)


def test_a_longer_run_that_is_killed_before_its_first_checkpoint_is_unfinished(folder):
    more = {"distill": {"student_updates": 4}}
    first = (folder / "collection.safetensors").read_bytes()

    def stop(what, *_):
        if what == "distill":
            raise ZeroDivisionError

    def lengthen():
        with pytest.raises(ZeroDivisionError):
            collectionlora.distill(folder, overrides=more, resume=True, progress=stop)

    lengthen()
    for overrides in (more, {}):
        with pytest.raises(UserError, match="holds a run that stopped before step 2 of 4; go on with --res"):
            collectionlora.distill(folder, overrides=overrides)
    collectionlora.distill(folder, resume=True)  # the first length again
    lengthen()
    assert (folder / "collection.safetensors").read_bytes() == first
    collectionlora.distill(folder, overrides=more, resume=True)
    assert (folder / "collection.safetensors").read_bytes() != first
    steps = (folder / "runs" / "default" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == [0, 1, 2, 3]


def test_a_run_is_compared_with_the_settings_it_last_went_on_with(folder, caplog):
    more = {"distill": {"student_updates": 3}}
    collectionlora.distill(folder, overrides=more, resume=True)
    collectionlora.distill(folder, overrides=more)
    assert "is finished" in caplog.text
    with pytest.raises(UserError, match=r"distill\.student_updates was 3 and is 2"):
        collectionlora.distill(folder)


def test_a_run_that_goes_on_is_not_shorter_than_it_is(folder):
    before = contents(folder)
    with pytest.raises(
        UserError, match=r"holds 2 steps, but these settings ask for 1; write --set .*student_updates=2, as"
    ):
        collectionlora.distill(folder, overrides={"distill": {"student_updates": 1}}, resume=True)
    assert contents(folder) == before


@pytest.mark.parametrize(("taken", "updates"), [(2, 1), (3, 4), (3, 1)])
def test_a_warm_start_that_is_over_keeps_its_length(folder, taken, updates):
    """Otherwise the critics would never begin as the student, or the warm start would come a second time."""
    layer = {"match": {"updates": 2}, "distill": {"student_updates": 3, "checkpoint_minutes": 0}}

    def stop(what, done, _total, _metrics):
        if (what, done) == ("distill", taken + 1):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        collectionlora.distill(folder, "warm", layer, progress=stop)
    changed = {**layer, "match": {"updates": updates}}
    with pytest.raises(UserError, match=rf"match\.updates was 2 and is {updates}, but {taken} steps are"):
        collectionlora.distill(folder, "warm", changed, resume=True)
    collectionlora.distill(folder, "warm", layer, resume=True)


def test_the_result_of_a_finished_run_comes_back(folder):
    adapter = folder / "collection.safetensors"
    before = adapter.read_bytes()
    adapter.unlink()
    collectionlora.distill(folder)
    assert adapter.read_bytes() == before


def test_a_new_adapter_has_no_way_back_to_the_one_before_an_earlier_addition(folder):
    backup = folder / "collection.before-add.safetensors"
    backup.write_bytes(b"old")
    collectionlora.distill(folder, "second", {"distill": {"seed": 1}})
    (kept,) = folder.glob("collection.before-add-*.safetensors")
    assert (backup.exists(), kept.read_bytes()) == (False, b"old")


def test_again_moves_no_start_away(folder):
    start = {"match": {"start": "runs/default/collection.safetensors"}}
    before = contents(folder)
    with pytest.raises(UserError, match=r"settings\.match\.start: is moved away by --again; copy it into"):
        collectionlora.distill(folder, overrides=start, again=True)
    assert contents(folder) == before


def test_the_name_of_a_run_may_hold_a_dot(folder):
    collectionlora.distill(folder, "v1.5")
    collectionlora.distill(folder, "v1.5", again=True)
    assert [path.name.startswith("v1.5-20") for path in folder.glob("runs/v1*")].count(True) == 1


def test_again_keeps_the_earlier_run_and_its_adapter(folder):
    adapter, run = folder / "collection.safetensors", folder / "runs" / "default"
    before = adapter.read_bytes()
    log = (run / "log.jsonl").read_bytes()
    collectionlora.distill(folder, overrides={"distill": {"seed": 1}}, again=True)
    assert adapter.read_bytes() != before
    (kept,) = folder.glob("collection-*.safetensors")
    (aside,) = folder.glob("runs/default-*")
    assert kept.read_bytes() == (aside / adapter.name).read_bytes() == before
    assert (aside / "log.jsonl").read_bytes() == log
    assert json.loads((run / "run.json").read_text())["distill.seed"] == 1
    with pytest.raises(UserError, match="--again: cannot go with --resume"):
        collectionlora.distill(folder, again=True, resume=True)


@pytest.mark.parametrize(("minutes", "kept"), [(0, 3), (60, 0)])
def test_memory_that_runs_out_goes_back_to_the_last_checkpoint(
    distilled, tmp_path, monkeypatch, capsys, minutes, kept
):
    """It runs out in the fourth step, between the student's update and the critic's."""
    long = ["--set", "distill.student_updates=5", "--set", f"distill.checkpoint_minutes={minutes}"]
    folders = [shutil.copytree(distilled, tmp_path / name) for name in ("whole", "cut")]

    def distill(folder, *more):
        monkeypatch.setattr(sys, "argv", ["collectionlora", "distill", str(folder), *long, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]

    assert distill(folders[0], "--again") == (0, [])
    plain, calls = Distillation.update_critic, []

    def run_out(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore of CUDA")
        return plain(self, *args)

    monkeypatch.setattr(Distillation, "update_critic", run_out)
    adapter = (folders[1] / "collection.safetensors").read_bytes()
    code, [line] = distill(folders[1], "--again")
    monkeypatch.setattr(Distillation, "update_critic", plain)
    assert code == 2
    assert line.startswith("error: memory: is not enough (cuda out of memory.")
    assert "; lower data.resolution, distill.batch_size" in line
    checkpoints = folders[1] / "runs" / "default" / "checkpoints"
    assert (latest_checkpoint(checkpoints) or (0, {}))[0] == kept
    assert (folders[1] / "collection.safetensors").read_bytes() == adapter
    assert distill(folders[1], "--resume") == (0, [])
    whole, cut = (folder / "runs" / "default" for folder in folders)
    (step, expected), (_, found) = (latest_checkpoint(run / "checkpoints") for run in (whole, cut))
    assert step == 5
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert (cut / "collection.safetensors").read_bytes() == (whole / "collection.safetensors").read_bytes()


def test_again_keeps_what_a_run_without_facts_left(folder):
    run = folder / "runs" / "default"
    (run / "run.json").unlink()
    states = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    collectionlora.distill(folder, again=True)
    (aside,) = folder.glob("runs/default-*")
    assert {path.name: path.read_bytes() for path in (aside / "checkpoints").iterdir()} == states


def test_a_replacement_that_fails_leaves_the_file_and_no_copy(tmp_path):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(b"dear")
    with pytest.raises(ZeroDivisionError), keep_earlier(path):
        1 / 0  # noqa: B018
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(path.name, b"dear")]


def test_a_second_run_keeps_the_adapter_of_the_first(folder):
    before = (folder / "collection.safetensors").read_bytes()
    collectionlora.distill(folder, "second", {"distill": {"seed": 1}})
    (kept,) = folder.glob("collection-*.safetensors")
    assert kept.read_bytes() == before
    assert (folder / "collection.safetensors").read_bytes() != before


def test_a_run_that_ended_before_it_wrote_its_result_writes_it(folder):
    result = folder / "runs" / "default" / "collection.safetensors"
    before = result.read_bytes()
    result.unlink()
    collectionlora.distill(folder)
    assert result.read_bytes() == before
    assert not list(folder.glob("collection-*.safetensors"))


@pytest.mark.parametrize(
    ("layer", "how"),
    [({"distill": {"seed": 1}}, {"again": True}), ({"distill": {"student_updates": 3}}, {"resume": True})],
)
@pytest.mark.parametrize("written", [0, 1])
def test_a_run_that_stops_among_its_results_writes_them_at_the_next_call(
    folder, monkeypatch, layer, how, written
):
    results = folder / "collection.safetensors", folder / "runs" / "default" / "collection.safetensors"
    before = results[0].read_bytes()
    plain, calls = Session.write_result, []

    def fill_the_disk(*args):
        calls.append(args)
        if len(calls) > written:
            raise ZeroDivisionError
        plain(*args)

    monkeypatch.setattr(Session, "write_result", fill_the_disk)
    with pytest.raises(ZeroDivisionError):
        collectionlora.distill(folder, overrides=layer, **how)
    monkeypatch.setattr(Session, "write_result", plain)
    collectionlora.distill(folder, overrides=layer)
    assert results[0].read_bytes() == results[1].read_bytes() != before
    kept = [path.read_bytes() for path in folder.glob("collection-*.safetensors")]
    assert kept == [before]


def test_teaching_keeps_the_teacher_that_was_there(folder):
    teacher = folder / "teachers" / "sepia.safetensors"
    before = teacher.read_bytes()
    collectionlora.teach(folder, ["sepia"])
    (kept,) = folder.glob("teachers/sepia-*.safetensors")
    assert kept.read_bytes() == before != teacher.read_bytes()
    collectionlora.teach(folder, ["sepia"])
    assert len(list(folder.glob("teachers/sepia-*.safetensors"))) == 1


def test_a_taught_lora_is_not_read_with_the_alphas_of_the_one_before(folder, monkeypatch):
    place = folder / "teachers" / "sepia" / "adapter_model.safetensors"
    place.parent.mkdir()
    (folder / "teachers" / "sepia.safetensors").rename(place)
    config = place.with_name("adapter_config.json")
    config.write_text(json.dumps({"r": 2, "lora_alpha": 8}))
    manifest = (folder / "collection.yaml").read_text()
    moved = manifest.replace("teachers/sepia.safetensors", "teachers/sepia/adapter_model.safetensors")
    (folder / "collection.yaml").write_text(moved)
    before = contents(place.parent)
    monkeypatch.setattr(verbs, "write_lora", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        collectionlora.teach(folder, ["sepia"])
    monkeypatch.undo()
    assert contents(place.parent) == before  # a full disk takes the alphas from no tensors
    collectionlora.teach(folder, ["sepia"])
    assert set(read_lora(place).scales.values()) == {1.0}
    (kept,) = place.parent.glob("adapter_config-*.json")
    assert json.loads(kept.read_text()) == {"r": 2, "lora_alpha": 8}


@pytest.mark.parametrize("when", ["encode sepia", "encode technicolor", "general"])
@pytest.mark.parametrize(
    "files",
    [("teachers/technicolor.safetensors", "teachers/sepia.safetensors"), ("photos/1.png", "photos/0.png")],
)
def test_what_changes_while_targets_are_made_is_never_kept_as_something_else(tmp_path, when, files):
    """A file is replaced after it was read; fresh targets of what lies there then are made the same."""
    settings = SMALL | {"match": {"updates": 1}}
    folder = small_collection.build(tmp_path / "mine", settings=settings)
    new, old = files

    def replace(what, *_):
        if what == when:
            shutil.copy(folder / new, folder / old)

    with pytest.raises(UserError, match="changed while it was read; run the command again"):
        collectionlora.targets(folder, progress=replace)
    fresh = shutil.copytree(folder, tmp_path / "fresh", ignore=shutil.ignore_patterns("cache"))
    for place in (folder, fresh):
        collectionlora.targets(place)
    made = {path.name: path.read_bytes() for path in (folder / "cache").glob("*.safetensors")}
    expected = {path.name: path.read_bytes() for path in (fresh / "cache").glob("*.safetensors")}
    assert {name: made.get(name) for name in expected} == expected


def test_a_teacher_that_is_replaced_while_it_is_converted_is_never_kept(tmp_path, monkeypatch):
    folder = small_collection.build(tmp_path / "mine", settings=SMALL)
    teachers = folder / "teachers"

    def read_then_replace(path, *rest):
        lora = read_teacher(path, *rest)
        if path.stem == "sepia":
            shutil.copy(teachers / "technicolor.safetensors", path)
        return lora

    monkeypatch.setattr(teacher_files, "read_teacher", read_then_replace)
    with pytest.raises(UserError, match="sepia: a teacher or a photo changed while it was read"):
        collectionlora.targets(folder)
    assert not list((folder / "cache").glob("teacher-sepia-*.safetensors"))


def test_pairs_that_are_corrected_while_an_earlier_effect_trains_are_learned_next_time(folder):
    target = folder / "pairs" / "technicolor" / "target"
    taken = []

    def correct(what, *_):
        taken.append(what)
        if what == "sepia":
            shutil.copy(target / "1.png", target / "0.png")

    collectionlora.teach(folder, progress=correct)
    assert taken == ["sepia", "technicolor"]
    taken.clear()
    collectionlora.teach(folder, progress=lambda what, *_: taken.append(what))
    assert taken == ["technicolor"]


def test_init_and_add_refuse_to_replace_a_lora(folder, tmp_path):
    stranger = folder / "teachers" / "technicolor.safetensors"
    loras = tmp_path / "sepia.safetensors"
    shutil.copy(stranger, loras)
    (folder / "collection.yaml").rename(tmp_path / "collection.yaml")
    before = contents(folder)
    with pytest.raises(UserError, match=r"teachers/sepia\.safetensors: exists already and is not"):
        create(folder, "nano", [loras])
    assert contents(folder) == before
    (tmp_path / "collection.yaml").rename(folder / "collection.yaml")
    (folder / "photos" / "grain").mkdir()
    shutil.copy(folder / "photos" / "0.png", folder / "photos" / "grain")
    shutil.copy(folder / "teachers" / "sepia.safetensors", folder / "teachers" / "grain.safetensors")
    before = contents(folder)
    with pytest.raises(UserError, match=r"teachers/grain\.safetensors: exists already and is not"):
        collectionlora.add(folder, ["grain"], stranger, "add grain")
    assert contents(folder) == before
    assert [effect.name for effect in Collection.load(folder).effects] == ["sepia", "technicolor"]
