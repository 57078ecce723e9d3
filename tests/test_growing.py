"""`add`, `remove` and the gate, over a collection that was never trained."""

import json
import os
import shutil
import signal
import sys
from functools import partial

import pytest
import torch
import yaml
from helpers.bench_collection import PROMPTS, build, photo

import collectionlora
from collectionlora.adapters.formats import read_lora, write_lora
from collectionlora.adapters.recipe import read_adapter, read_recipe, write_adapter
from collectionlora.collection import Collection
from collectionlora.command_line import terminal
from collectionlora.command_line import verbs as cli
from collectionlora.effectbench import bench, benching
from collectionlora.effectbench.gate import Gate
from collectionlora.manifest.edits import add_effect, drop_effects
from collectionlora.pictures.photos import write_photo
from collectionlora.runs import growing
from collectionlora.runs.folder import hold
from collectionlora.streams import EffectData, Streams
from collectionlora.system.errors import Interrupted, UserError
from collectionlora.system.files import write_tensors

SHORT = {"add": {"match_updates": 1, "student_updates": 1}}
MANIFEST = """\
# mine
base: nano
effects:
  # the first
  - name: one   # named so
    teacher: one.safetensors
    teacher_prompt: |
      draw it
      in ink
    photos: photos
  # the second
  -
    name: two
    teacher: two.safetensors
    teacher_prompt: "glow"
    photos: photos

# what is kept
general: {photos: photos, prompts: general.txt}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The adapter holds sepia; mine is in the manifest only."""
    folder = tmp_path_factory.mktemp("template")
    build(folder, finished=["sepia"])
    collectionlora.targets(folder)
    return folder


@pytest.fixture
def folder(template, tmp_path):
    return shutil.copytree(template, tmp_path / "mine")


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run `collectionlora VERB FOLDER ...`; returns exit code, stdout, stderr."""

    def run_verb(verb, *arguments):
        monkeypatch.setattr(sys, "argv", ["collectionlora", verb, str(folder), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run_verb


def adapter(folder):
    return read_adapter(folder / "collection.safetensors")


def same(first, second):
    return all(torch.equal(x, y) for name in first for x, y in zip(first[name], second[name], strict=True))


def edited(tmp_path, text):
    (tmp_path / "collection.yaml").write_text(text)
    return tmp_path


def test_effects_leave_and_enter_a_manifest_as_text(tmp_path):
    edited(tmp_path, MANIFEST)
    without = drop_effects(tmp_path, ["one"])
    assert [e.name for e in Collection.parse(tmp_path, without).effects] == ["two"]
    assert "# the first" in without
    assert "# the second" in without
    assert "in ink" not in without
    edited(tmp_path, MANIFEST.replace("  # the second\n", "    # truth: none\n  # the second\n"))
    assert "truth" not in drop_effects(tmp_path, ["one"])
    edited(tmp_path, MANIFEST)
    without = drop_effects(tmp_path, ["two"])
    assert without.endswith(
        "  # the second\n\n# what is kept\ngeneral: {photos: photos, prompts: general.txt}\n"
    )
    entry = {"name": "three", "teacher": "t: x", "teacher_prompt": "é, [so]: yes", "photos": "p"}
    grown = Collection.parse(tmp_path, add_effect(tmp_path, entry))
    assert [e.name for e in grown.effects] == ["one", "two", "three"]
    assert grown.effect("three").model_dump(exclude_defaults=True) == entry
    assert add_effect(tmp_path, entry).count("#") == MANIFEST.count("#")


def test_a_list_over_several_lines_goes_with_its_effect(tmp_path):
    listed = "    photos: photos\n    references: [\n      a.png,\n      b.png,\n    ]\n  # the second\n"
    edited(tmp_path, MANIFEST.replace("    photos: photos\n  # the second\n", listed))
    assert Collection.parse(tmp_path, drop_effects(tmp_path, ["one"])).effects[0].name == "two"
    at_end = MANIFEST.replace('"glow"\n', '"glow"\n    references: [\n      a.png\n    ]\n')
    edited(
        tmp_path,
        at_end.replace("    photos: photos\n\n# what", "\n# what").replace(
            "    references", "    photos: photos\n    references"
        ),
    )
    entry = {"name": "three", "teacher": "t", "teacher_prompt": "p", "photos": "p"}
    assert len(Collection.parse(tmp_path, add_effect(tmp_path, entry)).effects) == 3


def test_an_effect_enters_at_the_end_of_a_file_without_a_last_line_break(tmp_path):
    head, _, tail = MANIFEST.partition("effects:\n")
    general = tail[tail.index("general") :]
    text = f"{head}{general}effects:\n- {{name}}".replace(
        "{name}", "name: one\n  teacher: a\n  teacher_prompt: b\n  photos: c"
    )
    entry = {"name": "three", "teacher": "t", "teacher_prompt": "p", "photos": "p"}
    grown = Collection.parse(tmp_path, add_effect(edited(tmp_path, text), entry))
    assert [e.name for e in grown.effects] == ["one", "three"]


def test_a_list_in_brackets_is_left_to_its_writer(tmp_path):
    document = yaml.safe_load(MANIFEST)
    edited(tmp_path, yaml.safe_dump(document, default_flow_style=True))
    with pytest.raises(UserError, match=r"effects: is written in brackets; write each effect as lines"):
        drop_effects(tmp_path, ["one"])


def test_new_effects_are_drawn_with_their_ratio_and_the_rest_is_replayed():
    weights = {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0}
    blank = [torch.zeros(1, 1, 1, 1, 1)] * 2
    data = [EffectData(name, *blank, None, None, None, weight=weight) for name, weight in weights.items()]
    streams = Streams(data, None, seed=0, batch_size=1, effect_ratio=1.0)

    def share(name):
        return [streams.effect_at(step) for step in range(4000)].count(name) / 4000

    assert share("a") == pytest.approx(0.5, abs=0.03)
    assert all(share(name) == pytest.approx(1 / 6, abs=0.03) for name in "bcd")
    streams.favour(["a", "b", "c", "d"], 0.25)
    assert share("a") == pytest.approx(0.5, abs=0.03)
    streams.favour([], 0.25)
    assert share("a") == pytest.approx(0.5, abs=0.03)
    streams.favour(["d"], 0.4)
    assert share("d") == pytest.approx(0.4, abs=0.03)
    assert share("a") == pytest.approx(0.36, abs=0.03)
    assert share("b") == share("b") == pytest.approx(0.12, abs=0.03)


def test_an_addition_starts_from_the_finished_adapter(folder):
    before, _ = adapter(folder)
    path = collectionlora.add(folder, ["mine"], overrides={"add": {"match_updates": 0, "student_updates": 0}})
    after, recipe = adapter(folder)
    assert path == folder / "collection.safetensors"
    assert recipe.effects == PROMPTS
    assert same(before.weights, after.weights)


def test_an_addition_needs_no_file_that_the_first_run_began_as(folder):
    overrides = {"match": {"start": "deleted.safetensors"}, **SHORT}
    collectionlora.add(folder, ["mine"], overrides=overrides)
    assert adapter(folder)[1].effects == PROMPTS


def test_an_addition_says_which_steps_it_does_not_train(folder, caplog):
    collectionlora.add(folder, ["mine"], overrides={**SHORT, "distill": {"rollout_steps": [2]}})
    assert "sampling.steps is 1, which distill.rollout_steps [2] does not train" in caplog.text


def test_an_addition_trains_few_updates_and_keeps_the_adapter_from_before(folder, run):
    before = (folder / "collection.safetensors").read_bytes()
    code, out, err = run(
        "add", "mine", "--set", "add.match_updates=2", "--set", "add.student_updates=1", "--json"
    )
    assert code == 0, err
    assert json.loads(out) == {"adapter": str(folder / "collection.safetensors")}
    (log,) = folder.glob("runs/add-*/log.jsonl")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert ["match" in entry for entry in entries] == [True, True, False]
    assert (log.parent / "previews" / "step-00000003.png").exists()
    assert list((log.parent / "tensorboard").iterdir())
    assert (folder / "collection.before-add.safetensors").read_bytes() == before
    assert (folder / "collection.safetensors").read_bytes() != before
    code, _, err = run("add", "mine")
    assert (
        code,
        err.splitlines()[-1].endswith("mine: is in this adapter already; name an effect that is new"),
    ) == (2, True)


def test_a_distillation_begins_as_a_finished_adapter(folder):
    shutil.move(folder / "collection.safetensors", folder / "earlier.safetensors")
    start = {"start": "earlier.safetensors", "updates": 1, "learning_rate": 1e-12}
    path = collectionlora.distill(folder, "more", {"match": start, "distill": {"student_updates": 0}})
    (before, _), (after, recipe) = (read_adapter(file) for file in (folder / "earlier.safetensors", path))
    assert recipe.effects == PROMPTS
    for module, pair in before.weights.items():
        torch.testing.assert_close(after.weights[module], pair)
    assert "earlier.safetensors" in json.loads((folder / "runs/more/inputs.json").read_text())["files"]


def test_effects_of_a_start_keep_its_prompts(folder):
    lora, recipe = adapter(folder)
    known = "<known> by another collection"
    earlier = recipe.model_copy(update={"effects": {"mine": known}})
    write_adapter(folder / "earlier.safetensors", lora.weights, earlier)
    (folder / "collection.safetensors").unlink()
    manifest = yaml.safe_load((folder / "collection.yaml").read_text())
    for effect in manifest["effects"]:
        del effect["student_prompt"]
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))
    start = {"match": {"start": "earlier.safetensors", "updates": 1}, "distill": {"student_updates": 0}}
    made = collectionlora.prompts(folder, overrides=start)
    assert made["written_by"] == {"mine": "match.start", "sepia": "teacher prompt"}
    assert made["student_prompts"]["mine"] == known
    path = collectionlora.distill(folder, "more", start)
    assert read_adapter(path)[1].effects == made["student_prompts"]
    (folder / "earlier.safetensors").unlink()  # what only reads the prompts needs no adapter any more
    assert collectionlora.prompts(folder, overrides=start)["student_prompts"] == made["student_prompts"]
    collectionlora.targets(folder, start)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("mergd", "mergd: settings.match.start: is not a file; write base, merge, or the file of a finished"),
        (
            "../earlier.safetensors",
            "settings.match.start: ../earlier.safetensors lies outside the folder; copy",
        ),
        ("teachers/mine.safetensors", "mine.safetensors: header: carries no collectionlora recipe; give"),
    ],
)
def test_a_start_that_is_no_adapter_is_found_before_a_run(folder, run, start, message):
    code, _, err = run("distill", "--set", f"match.start={start}")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert message in err
    manifest = yaml.safe_load((folder / "collection.yaml").read_text())
    manifest["settings"]["match"] = {"start": start}
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))
    code, out, err = run("check")
    assert code == 2
    assert message in out + err


def test_the_file_that_a_run_replaces_is_no_start(folder, run):
    code, _, err = run("distill", "--set", "match.start=collection.safetensors")
    assert code == 2
    assert "settings.match.start: is replaced by the run's result; copy it, for example to" in err


def test_a_start_of_more_rank_is_refused(folder, run):
    shutil.copyfile(folder / "collection.safetensors", folder / "earlier.safetensors")
    wanted = ("match.start=earlier.safetensors", "student.rank=1")
    code, _, err = run("distill", *(word for setting in wanted for word in ("--set", setting)))
    assert code == 2
    assert "earlier.safetensors: has rank 3, the student 1; write --set student.rank=3" in err
    manifest = yaml.safe_load((folder / "collection.yaml").read_text())
    manifest["settings"] |= {"match": {"start": "earlier.safetensors"}, "student": {"rank": 1}}
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))
    code, out, err = run("check")
    assert code == 2
    assert "has rank 3, the student 1" in out + err


def test_a_start_with_a_module_that_the_base_lacks_is_refused(folder):
    lora, recipe = adapter(folder)
    pair = next(iter(lora.weights.values()))
    write_adapter(folder / "earlier.safetensors", {**lora.weights, "old.module": pair}, recipe)
    with pytest.raises(UserError, match=r"old\.module: is not a module of nano that takes this LoRA"):
        collectionlora.distill(folder, overrides={"match": {"start": "earlier.safetensors"}})


def test_another_file_to_start_from_is_another_run(folder, run, caplog):
    shutil.copyfile(folder / "collection.safetensors", folder / "earlier.safetensors")
    options = ("match.start=earlier.safetensors", "match.updates=1", "distill.student_updates=0")
    begin = ("distill", *(word for option in options for word in ("--set", option)))
    assert run(*begin)[0] == 0
    assert run(*begin)[0] == 0
    assert "is finished" in caplog.text
    lora, recipe = read_adapter(folder / "earlier.safetensors")
    changed = {name: (down, 2 * up) for name, (down, up) in lora.weights.items()}
    write_adapter(folder / "earlier.safetensors", changed, recipe)
    code, _, err = run(*begin)
    assert code == 2
    assert "start was" in err


@pytest.mark.thorough
def test_an_interrupted_addition_goes_on_to_the_same_file(folder, tmp_path):
    twin = shutil.copytree(folder, tmp_path / "twin")
    overrides = {"add": {"match_updates": 2, "student_updates": 2}}

    def interrupt(what, done, total, metrics):
        if (what, done) == ("add", 2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        collectionlora.add(folder, ["mine"], overrides=overrides, progress=interrupt)
    assert list(adapter(folder)[1].effects) == ["sepia"]
    without_effect = {"log": {"preview_every": 7}, "distill": {"checkpoint_minutes": 1}}
    collectionlora.add(folder, ["mine"], overrides={**overrides, **without_effect})
    assert len(list(folder.glob("runs/add-*"))) == 1
    collectionlora.add(twin, ["mine"], overrides=overrides)
    files = [path / "collection.safetensors" for path in (folder, twin)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_teacher_file_enters_the_manifest(folder, run, tmp_path):
    teacher = tmp_path / "neon.safetensors"
    shutil.copyfile(folder / "teachers" / "mine.safetensors", teacher)
    manifest = (folder / "collection.yaml").read_text()
    code, _, err = run("add", "neon", "--teacher", teacher)
    assert code == 2
    assert "the file does not say what it was trained with; give it: --teacher-prompt TEXT" in err
    code, _, err = run("add", "neon", "--teacher", teacher, "--teacher-prompt", "glow")
    assert code == 2
    assert "photos/neon: photos: there is no such folder" in " ".join(err.split())
    assert (folder / "collection.yaml").read_text() == manifest
    assert not (folder / "teachers" / "neon.safetensors").exists()

    write_photo(folder / "photos" / "neon" / "0.png", photo(3))
    options = ("--set", "add.match_updates=0", "--set", "add.student_updates=0")
    code, _, err = run("add", "neon", "--teacher", teacher, "--teacher-prompt", "glow", *options)
    assert code == 0, err
    assert list(adapter(folder)[1].effects) == ["sepia", "neon"]  # mine was not asked for
    assert Collection.load(folder).effect("neon").teacher_prompt == "glow"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"add": {"match_update": 1}}, "match_update"),
        ({"sampling": {"steps": 3}}, "sampling.steps is 1 in the adapter, and 3 in the settings"),
    ],
)
def test_an_addition_that_is_refused_leaves_the_manifest(folder, overrides, words):
    write_photo(folder / "photos" / "neon" / "0.png", photo(3))
    before = (folder / "collection.yaml").read_bytes()
    teacher = folder / "teachers" / "mine.safetensors"
    with pytest.raises(UserError, match=words):
        collectionlora.add(folder, ["neon"], teacher, "glow", overrides)
    assert (folder / "collection.yaml").read_bytes() == before
    assert not (folder / "teachers" / "neon.safetensors").exists()


@pytest.mark.parametrize("verb", [collectionlora.distill, partial(collectionlora.add, names=["mine"])])
def test_shards_need_several_processes_before_anything_is_made(folder, verb):
    with pytest.raises(UserError, match=r"settings\.model\.sharding: fsdp needs several processes; launch"):
        verb(folder, overrides={"model": {"sharding": "fsdp"}, "distill": {"batch_size": 1}})


def test_a_teacher_with_a_text_encoder_is_entered_by_hand(folder):
    teacher = folder / "neon.safetensors"
    lora = {"lora_te1_x.lora_down.weight": torch.ones(1, 2), "lora_te1_x.lora_up.weight": torch.ones(2, 1)}
    write_tensors(teacher, lora, {})
    with pytest.raises(UserError, match="write the effect with without_text_encoder: true into coll"):
        growing.enter_teacher(Collection.load(folder), "neon", teacher, "glow")


def test_a_teacher_is_entered_once(folder, tmp_path):
    entered, manifest = folder / "teachers" / "mine.safetensors", (folder / "collection.yaml").read_text()
    collection = Collection.load(folder)
    assert growing.enter_teacher(collection, "mine", entered, None) == collection
    with pytest.raises(UserError, match=r"collection\.yaml: mine: has another teacher_prompt; leave out"):
        growing.enter_teacher(collection, "mine", entered, "another")
    other = tmp_path / "other.safetensors"
    shutil.copyfile(folder / "teachers" / "sepia.safetensors", other)
    with pytest.raises(UserError, match=r"mine\.safetensors: exists already and is not .*other\.safetensors"):
        growing.enter_teacher(collection, "mine", other, None)
    assert (folder / "collection.yaml").read_text() == manifest


def test_a_teacher_of_another_base_is_refused_before_anything_is_written(folder, tmp_path):
    write_photo(folder / "photos" / "neon" / "0.png", photo(3))
    write_lora(tmp_path / "x.safetensors", {"nowhere": (torch.zeros(2, 8), torch.zeros(8, 2))}, {})
    before = (folder / "collection.yaml").read_text()
    with pytest.raises(UserError):
        collectionlora.add(folder, ["neon"], tmp_path / "x.safetensors", "glow")
    assert (folder / "collection.yaml").read_text() == before


@pytest.mark.parametrize(
    ("names", "change", "words"),
    [
        (["mien"], {}, "no such effect; did you mean mine"),
        (["mine"], {"sepia": {"student_prompt": "<other> x"}}, "sepia: has another student prompt now"),
        (["mine"], {"sepia": {"name": "brown"}}, "sepia: is in the adapter, not here; put it back, or run"),
    ],
)
def test_what_does_not_fit_the_adapter_is_named(folder, names, change, words):
    manifest = yaml.safe_load((folder / "collection.yaml").read_text())
    for effect in manifest["effects"]:
        effect.update(change.get(effect["name"], {}))
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(UserError, match=words):
        collectionlora.add(folder, names, overrides=SHORT)


def test_an_adapter_of_more_rank_than_the_student_is_named(folder):
    ranks = {"student": {"rank": 2}, "critic": {"rank": 2}}
    with pytest.raises(UserError, match=r"--set student.rank=3 --set critic.rank=3"):
        collectionlora.add(folder, ["mine"], overrides={**SHORT, **ranks})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sampling": {"steps": 2}}, "sampling.steps is 1 in the adapter, and 2 in the settings"),
        ({"sampling": {"shift": 3}}, "sampling.shift is 12.0 in the adapter, and 3.0 in the settings"),
        ({"sampling": {"sampler": "stochastic"}}, "sampling.sampler is euler in the adapter"),
        ({"data": {"resolution": 16}}, "data.resolution is 32 in the adapter"),
    ],
)
def test_an_addition_keeps_the_schedule_of_the_adapter(folder, changed, words):
    before = (folder / "collection.safetensors").read_bytes()
    with pytest.raises(UserError, match=words):
        collectionlora.add(folder, ["mine"], overrides={**SHORT, **changed})
    assert (folder / "collection.safetensors").read_bytes() == before


def test_two_processes_do_not_change_the_effects_of_one_collection(folder):
    before = (folder / "collection.yaml").read_bytes()
    # A run that makes its targets has a lock and nothing else yet.
    with hold(folder / "runs" / "default"), pytest.raises(UserError, match="this run is held by process"):
        collectionlora.remove(folder, ["mine"])
    with hold(folder / "runs"):
        with pytest.raises(UserError, match=r"runs/lock: this collection is held by process .* wait for it"):
            collectionlora.add(folder, ["mine"], overrides=SHORT)
        for verb in (partial(collectionlora.remove, names=["mine"]), collectionlora.distill):
            with pytest.raises(UserError, match="this collection is held"):
                verb(folder)
    assert (folder / "collection.yaml").read_bytes() == before
    assert collectionlora.remove(folder, ["mine"]) == ["sepia"]


@pytest.mark.parametrize("name", ["match.updates", "distill.student_updates"])
def test_the_length_of_a_distillation_is_none_of_an_addition(folder, run, name):
    code, _, err = run("add", "mine", "--set", f"{name}=20")
    assert code == 2
    assert f"--set: {name}: is not used by add; give add.match_updates or add.student_updates" in err
    # A study gives an addition all that it gave the distillation.
    collectionlora.add(folder, ["mine"], overrides={**SHORT, "match": {"updates": 20}})


def test_an_adapter_of_peft_enters_with_the_file_that_states_its_alphas(folder, tmp_path):
    write_photo(folder / "photos" / "neon" / "0.png", photo(3))
    lora, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    shutil.copyfile(folder / "teachers" / "mine.safetensors", lora)
    config.write_text(json.dumps({"r": 3, "lora_alpha": 12}))
    collection = growing.enter_teacher(Collection.load(folder), "neon", lora, "glow")
    entered = collection.teacher_path(collection.effect("neon"))
    assert entered == folder / "teachers" / "neon" / "adapter_model.safetensors"
    assert set(read_lora(entered).scales.values()) == {4.0}
    assert growing.enter_teacher(collection, "neon", lora, None) == collection
    config.write_text(json.dumps({"r": 3, "lora_alpha": 3}))
    with pytest.raises(UserError, match="exists already and is not"):
        growing.enter_teacher(collection, "neon", lora, None)


def test_check_names_a_prompt_that_init_guessed(folder, run):
    manifest = folder / "collection.yaml"
    manifest.write_text(manifest.read_text().replace("apply mine", "apply the mine effect"))
    code, out, err = run("check", "--json")
    assert (code, json.loads(out)["guessed_prompts"]) == (0, ["mine"])
    code, _, err = run("check")
    assert "mine: its teacher_prompt is what init guesses; make sure that the LoRA was trained with it" in err


def test_what_follows_remove_can_be_run(folder, run):
    _, _, err = run("remove", "mine")
    assert f"next: {terminal.command('effects', folder)}" in err
    (folder / "collection.safetensors").unlink()
    manifest = yaml.safe_load((folder / "collection.yaml").read_text())
    manifest["effects"].append({**manifest["effects"][0], "name": "two", "student_prompt": "<two_z> x"})
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))
    _, _, err = run("remove", "two")
    assert f"next: {terminal.command('check', folder)}" in err


def test_a_removed_effect_is_no_longer_offered_and_the_weights_stay(folder, run):
    collectionlora.add(folder, ["mine"], overrides={"add": {"match_updates": 0, "student_updates": 0}})
    before, _ = adapter(folder)
    code, out, err = run("remove", "sepia", "--json")
    assert code == 0, err
    assert json.loads(out) == {"effects": ["mine"]}
    after, recipe = adapter(folder)
    assert recipe.effects == {"mine": PROMPTS["mine"]}
    assert same(before.weights, after.weights)
    (kept,) = folder.glob("collection-*.yaml")
    assert [e["name"] for e in yaml.safe_load(kept.read_text())["effects"]] == ["sepia", "mine"]
    assert {"sepia", "mine"} in [
        set(read_recipe(path).effects) for path in folder.glob("collection-*.safetensors")
    ]
    assert [e.name for e in Collection.load(folder).effects] == ["mine"]
    assert (folder / "teachers" / "sepia.safetensors").exists()
    code, _, err = run("remove", "mine")
    assert code == 2
    assert "no effect would be left" in err
    with pytest.raises(UserError, match="no such effect"):
        growing.remove(Collection.load(folder), ["nobody"])


def metrics_of(cases="c", **psnr):
    rows = {effect: {"psnr": value} for effect, value in psnr.items()}
    return {"cases": cases, "methods": {"student": {"per_effect": rows}}}


def gate(tmp_path, baseline, margin=1.0):
    path = tmp_path / "before.json"
    path.write_text(json.dumps(baseline))
    return Gate.load(path, margin, tmp_path / "metrics.json")


def test_a_gate_passes_up_to_its_margin_and_forgets_the_backup(tmp_path):
    one = gate(tmp_path, metrics_of(a=20.0, b=30.0))
    metrics = metrics_of(a=21.0, b=29.0, new=1.0)
    metrics["gate"] = one.check(metrics)
    assert metrics["gate"]["passed"]
    assert (metrics["gate"]["worst_effect"], metrics["gate"]["worst_loss"]) == ("b", 1.0)
    backup = tmp_path / "backup"
    backup.write_text("")
    one.enforce(metrics, backup, tmp_path / "result")
    assert not backup.exists()


def test_a_gate_names_what_lost_too_much_and_the_way_back(tmp_path):
    one = gate(tmp_path, metrics_of(a=20.0, b=30.0, c=9.0), 0.5)
    metrics = metrics_of(a=19.0, b=29.0, c=9.0)
    metrics["gate"] = one.check(metrics)
    (tmp_path / "backup").write_text("")
    line = "more than 0.5 dB is lost: a 20.00 to 19.00 dB, b 30.00 to 29.00 dB; "
    line += "go back: mv .*backup .*result; then add again"
    with pytest.raises(UserError, match=line):
        one.enforce(metrics, tmp_path / "backup", tmp_path / "result")
    assert (tmp_path / "backup").exists()


def test_a_gate_compares_with_the_teacher_where_there_is_no_truth(tmp_path):
    before = metrics_of(a=20.0)
    before["methods"]["student"]["per_effect"]["free"] = {"teacher_psnr": 25.0}
    now = metrics_of(a=20.0)
    now["methods"]["student"]["per_effect"]["free"] = {"teacher_psnr": 23.0}
    found = gate(tmp_path, before).check(now)
    assert (found["passed"], found["worst_effect"], found["worst_loss"]) == (False, "free", 2.0)
    now["gate"] = found
    with pytest.raises(UserError, match=r"free 25\.00 to 23\.00 dB"):
        gate(tmp_path, before).enforce(now, tmp_path / "backup", tmp_path / "result")


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        (metrics_of("other", a=1.0), "cases: is of other photos; bench with the same --photos"),
        (metrics_of(z=1.0), "student: no effect has a PSNR in both"),
        ({"cases": "c", "methods": {}}, "student: no effect has a PSNR in both"),
        (
            {**metrics_of(b=1.0), "methods": {"student": {"per_effect": {"a": {"teacher_psnr": 9.0}}}}},
            "a: had a teacher_psnr before, and has none now; bench the methods teacher and student",
        ),
    ],
)
def test_only_like_is_compared_with_like(tmp_path, baseline, words):
    with pytest.raises(UserError, match=words):
        gate(tmp_path, baseline).check(metrics_of(a=1.0))


def test_what_is_replaced_during_a_bench_is_judged_by_the_next(folder, monkeypatch):
    monkeypatch.setattr(benching, "CLASSIFIER_STEPS", 2)
    monkeypatch.setattr(bench, "GENERAL_KINDS", ("blur",))
    collectionlora.remove(folder, ["mine"])
    teacher = Collection.load(folder).teacher_path(Collection.load(folder).effect("sepia"))

    def replace(what, *_):
        if what == "pictures":
            for path in (teacher, folder / "collection.safetensors"):
                lora = read_lora(path)
                write_lora(path, {n: (a, b + 0.01) for n, (a, b) in lora.weights.items()}, lora.metadata)

    judge = partial(collectionlora.bench, folder, folder / "heldout", crops=1)
    judge(methods=["source", "teacher", "student"], progress=replace)
    judge(methods=["teacher", "student"])
    for name in ("teacher", "student"):
        assert len(list((folder / "bench" / "pictures" / name).glob("sepia-[!s]*"))) == 2


def test_a_bench_with_a_gate(folder, run, monkeypatch, tmp_path):
    monkeypatch.setattr(benching, "CLASSIFIER_STEPS", 2)
    monkeypatch.setattr(bench, "GENERAL_KINDS", ("blur",))
    collectionlora.remove(folder, ["mine"])
    arguments = ("--photos", folder / "heldout", "--crops", 1, "--methods", "student")
    code, _, err = run("bench", *arguments)
    assert code == 0, err
    written = folder / "bench" / "metrics.json"
    code, _, err = run("bench", *arguments, "--baseline", written)
    assert (code, "would be written over; copy it to another name first" in err) == (2, True)
    before = tmp_path / "before.json"
    shutil.copyfile(written, before)
    code, _, err = run("bench", *arguments, "--baseline", before, "--margin", 0)
    assert code == 0, err
    (kept,) = written.parent.glob("metrics-*.json")
    assert kept.read_bytes() == before.read_bytes()
    assert "the gate passed: the worst change is +0.00 dB, of sepia" in err
    metrics = json.loads(before.read_text())
    metrics["methods"]["student"]["per_effect"]["sepia"]["psnr"] += 3
    before.write_text(json.dumps(metrics))
    code, _, err = run("bench", *arguments, "--baseline", before)
    assert code == 2
    assert "--margin: more than 1 dB is lost: sepia" in err.splitlines()[-1]
    assert not json.loads(written.read_text())["gate"]["passed"]
    code, _, err = run("bench", "--photos", folder / "heldout", "--crops", 2, "--baseline", before)
    assert (code, "--baseline: is of other photos; bench with the same" in err) == (2, True)
    code, _, err = run("bench", *arguments, "--baseline", tmp_path / "nowhere.json")
    assert (code, "cannot be read" in err) == (2, True)
