"""Two processes give what one process gives that averages both gradients."""

import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import yaml
from helpers import bench_collection, tiny_pipelines
from helpers.lives import launch_two
from helpers.two_processes import (
    ACCUMULATED,
    ADDITION,
    FADING,
    SHARDED,
    judge_quickly,
    merges,
    preview,
    run_parts,
    toy_run,
    write_converted,
)
from safetensors.torch import load_file

import collectionlora
from collectionlora.adapters import merging
from collectionlora.adapters.formats import read_lora, write_lora
from collectionlora.adapters.recipe import read_adapter
from collectionlora.adapters.roles import target_weights
from collectionlora.backbones import family_of
from collectionlora.collection import Collection
from collectionlora.editing import Editor
from collectionlora.pictures.photos import write_photo
from collectionlora.runs import teacher_files
from collectionlora.runs.checkpoint import latest_checkpoint
from collectionlora.runs.folder import hold
from collectionlora.runs.session import Session, resolve_settings
from collectionlora.runs.watching import PREVIEWS
from collectionlora.system import processes
from collectionlora.system.errors import UserError

# The launches share one fixture, which takes a minute and more processes than a run of the tests has.
pytestmark = pytest.mark.thorough


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += map(str, arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


class TwoThreads:
    """Two ranks in one process: a thread each, whose gradients meet in place of `average_gradients`."""

    def __init__(self, monkeypatch):
        self.meeting, self.given = threading.Barrier(2, timeout=60), {}
        monkeypatch.setattr(processes, "average_gradients", self.average)

    def average(self, parameters, shares=1):
        name = threading.current_thread().name
        self.given[name] = [p.grad for p in parameters]
        self.meeting.wait()
        means = []
        for one, other in zip(*(self.given[rank] for rank in sorted(self.given)), strict=True):
            parts = [g for g in (one, other) if g is not None]
            means.append(sum(parts) / (2 * shares) if parts else None)
        self.meeting.wait()
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad = mean

    def run(self, runs, first=0):
        def steps(run):
            for step in range(first, run.num_steps):
                run(step)

        threads = [threading.Thread(target=steps, args=[run], name=str(i)) for i, run in enumerate(runs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def assert_close(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=atol, rtol=1e-6, msg=name)


def write_collection(folder, base):
    """Two effects over a tiny Qwen, and photos of three working sizes: processes draw their own."""
    torch.manual_seed(0)
    tiny_pipelines.qwen_image_edit().save_pretrained(base)
    weights = target_weights(*family_of(base).empty_network(base))
    shapes = {name: weight.shape for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(0)
    effects = []
    for name in ("one", "other"):
        weights = {
            module: (
                torch.randn(2, columns, generator=generator),
                0.1 * torch.randn(rows, 2, generator=generator),
            )
            for module, (rows, columns) in shapes.items()
        }
        write_lora(folder / "teachers" / f"{name}.safetensors", weights, {})
        teacher = {"teacher": f"teachers/{name}.safetensors", "teacher_prompt": f"{name} style"}
        effects.append({"name": name, **teacher, "photos": "photos"})
    rng = np.random.default_rng(0)
    for index, size in enumerate(((48, 48), (40, 120), (120, 40))):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        write_photo(folder / "photos" / f"{index}.png", pixels)
    (folder / "general.txt").write_text("blur\nbrighten the photo\n")
    roles = {"student": {"rank": 2, "learning_rate": 1e-3}, "critic": {"rank": 2, "learning_rate": 1e-3}}
    model = {"dtype": "float32", "condition_resolution": 64, "gradient_checkpointing": True}
    settings = {
        **roles,
        "model": model,
        "data": {"resolution": 32},
        "targets": {"steps": 2, "guidance_scale": 2, "general": 3},
        "match": {"updates": 1},
        "distill": {"seed": 1, "student_updates": 5, "rollout_steps": [2, 1], "student_update_every": 2},
    }
    general = {"photos": "photos", "prompts": "general.txt"}
    manifest = {"base": base, "effects": effects, "general": general, "settings": settings}
    (folder / "collection.yaml").write_text(yaml.safe_dump(manifest))


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A folder after a launch by torchrun, as users start one, and another; and what the first one said."""
    folder = tmp_path_factory.mktemp("launched")
    write_collection(folder / "first", base=str(folder / "base"))
    shutil.copytree(folder / "first", folder / "second")
    prompts = {"sepia": "<sepia_x> brown it", "thermal": "<thermal_y> see heat"}
    bench_collection.build(folder / "judged", prompts)
    bench_collection.build(folder / "grown", finished=["sepia"])
    shutil.copytree(folder / "grown", folder / "alone")
    # Behind the dashes nothing is read as an abbreviated option of torchrun.
    said = torchrun("-m", "--", "collectionlora", "distill", folder / "first", "--json")
    parts = ("whole", "stopped", "sharded", "accumulated", "previewed", "merged", "judged", "grown")
    write_converted(folder)
    codes, told = launch_two([folder, *parts], folder, run_parts)
    assert codes == [0, 0], told
    return folder, said


@pytest.fixture(scope="module")
def toy(launched):
    """The folder in which two processes trained, and were stopped and went on."""
    return launched[0]


@pytest.mark.parametrize(("name", "layers"), [("plain", ()), ("fading", FADING)])
def test_two_processes_are_one_that_averages_their_gradients(toy, monkeypatch, name, layers):
    runs = [toy_run(rank, *layers) for rank in (0, 1)]
    routes = [[run.streams.batch(step).effect for run in runs] for step in range(runs[0].num_steps)]
    assert any((one is None) != (other is None) for one, other in routes)
    TwoThreads(monkeypatch).run(runs)
    states = [load_file(toy / f"{name}-{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert_close(states[0], runs[0].tensors())
    alone = toy_run(0, *layers)
    monkeypatch.undo()
    for step in range(alone.num_steps):
        alone(step)
    assert not torch.allclose(states[0]["student.0"], alone.tensors()["student.0"], atol=1e-5)


@pytest.mark.parametrize(("name", "layers"), [("plain", ()), ("fading", FADING)])
def test_one_process_that_accumulates_two_batches_equals_two_processes(toy, name, layers):
    run = toy_run(0, *layers, {"distill": {"accumulate": 2}})
    for step in range(run.num_steps):
        run(step)
    state = load_file(toy / f"{name}-0.safetensors")
    assert all(torch.equal(state[key], tensor) for key, tensor in run.tensors().items())


def test_one_checkpoint_and_one_log_serve_all_processes(toy):
    assert len((toy / "plain" / "log.jsonl").read_text().splitlines()) == 11
    kept = {path.name for path in (toy / "plain" / "checkpoints").iterdir()}
    assert len(kept) == 2 * 3
    assert {"step-00000011.safetensors", "step-00000011.json"} <= kept


def test_a_signal_to_one_process_stops_all_at_one_step_and_they_resume(toy):
    told = [(toy / f"interrupted-{rank}").read_text() for rank in (0, 1)]
    assert told == ["stopped after step 6 of 11"] * 2
    whole = load_file(toy / "plain-0.safetensors")
    for rank in (0, 1):
        resumed = load_file(toy / f"resumed-{rank}.safetensors")
        assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_every_schedule_length_is_drawn_and_is_the_same_in_all_processes():
    runs = [toy_run(rank) for rank in (0, 1)]
    lengths = [[run.streams.schedule_length(step, (4, 2)) for step in range(20)] for run in runs]
    assert lengths[0] == lengths[1]
    assert set(lengths[0]) == {2, 4}


@pytest.fixture(scope="module")
def collections(launched):
    """The same collection twice over a tiny Qwen: two processes distilled the first, whole and sharded."""
    folder, _ = launched
    return folder / "first", folder / "second"


def test_shared_targets_are_those_of_one_process_bit_for_bit(collections):
    first, second = collections
    collectionlora.targets(second)
    names = [sorted(path.name for path in (folder / "cache").iterdir()) for folder in (first, second)]
    assert names[0] == names[1]
    assert len(names[0]) == 8  # photos, targets and teachers of two effects, and the general stream
    for name in names[0]:
        assert (first / "cache" / name).read_bytes() == (second / "cache" / name).read_bytes()


def test_the_main_process_alone_speaks_and_says_how_many_there_are(launched):
    whole = launched[1]
    assert whole.stdout.count("adapter") == 1
    assert whole.stderr.count("2 processes") == 1


def two_whole_runs(folder, settings, monkeypatch):
    """Both ranks' runs in this process, sharded nowhere."""
    monkeypatch.setattr("collectionlora.runs.session.shard", lambda roles: None)
    runs = []
    for rank in (0, 1):
        session = Session(Collection.load(folder), settings, with_critics=True)
        runs.append(session.distillation(lambda *_: None))
        runs[rank].streams.rank = rank
    return runs


# Gathered weights round differently in the last bit, and Adam magnifies that where a gradient is nearly zero;
# a wrong gradient would show as a whole step, of 1e-3.
@pytest.mark.parametrize(
    ("run", "layer", "atol"),
    [("default", {}, 1e-6), ("sharded", SHARDED, 1e-4), ("accumulated", ACCUMULATED, 1e-4)],
)
def test_a_distilled_collection_is_that_of_one_process(collections, monkeypatch, run, layer, atol):
    first, second = collections
    collectionlora.targets(second)
    settings = resolve_settings(Collection.load(second), layer)
    runs = two_whole_runs(second, settings, monkeypatch)
    batches = [[r.streams.batch(step).effect for r in runs] for step in range(runs[0].num_steps)]
    assert any(one != other for one, other in batches)
    TwoThreads(monkeypatch).run(runs)
    step, state = latest_checkpoint(first / "runs" / run / "checkpoints")
    assert step == 6
    assert_close(state, runs[0].tensors(), atol)
    made = read_lora(first / "runs" / run / "collection.safetensors").weights
    expected = runs[0].student_weights()
    assert made.keys() == expected.keys()
    for module, pair in expected.items():
        for found, tensor in zip(made[module], pair, strict=True):
            # The file is in half precision.
            torch.testing.assert_close(found, tensor, atol=atol, rtol=1e-3)


def test_each_process_holds_its_share_and_a_teacher_of_its_own(collections):
    numbers = [json.loads((collections[0] / "runs" / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    for part, (own, whole) in numbers[0].items():
        other = numbers[1][part][0]
        if part == "teacher":
            assert own == other == whole
        else:
            assert own + other == whole
            assert max(own, other) < 0.55 * whole, part


def test_no_role_keeps_gradients_after_an_update_in_shards(launched):
    for rank in (0, 1):
        left = json.loads((launched[0] / f"left-{rank}.json").read_text())
        assert left == [0] * 16  # one of the warm start; five of the student, each with two of a critic


def test_a_sharded_run_goes_on_from_its_checkpoint_in_shards_and_without(collections, monkeypatch):
    first, second = collections
    checkpoints = [first / "runs" / name / "checkpoints" for name in ("sharded", "resumed")]
    (_, whole), (_, resumed) = map(latest_checkpoint, checkpoints)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    runs = two_whole_runs(second, resolve_settings(Collection.load(second), SHARDED), monkeypatch)
    for run in runs:
        run.load_tensors(load_file(checkpoints[0] / "step-00000003.safetensors"))
    TwoThreads(monkeypatch).run(runs, first=3)
    assert_close(whole, runs[0].tensors(), atol=1e-4)


def test_processes_share_the_effects_of_a_preview_that_is_one_processs(collections):
    first, second = collections
    told = [json.loads((first / "runs" / f"previewed-{rank}.json").read_text()) for rank in (0, 1)]
    assert [sampled for sampled, _ in told] == [["one"], ["other"]]
    sampled, distances = preview(second)
    assert sampled == ["one", "other"]
    assert told[0][1] == told[1][1] == distances
    pictures = [folder / "runs" / "previewed" / PREVIEWS / "step-00000001.png" for folder in collections]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_one_process_proves_a_checkpoint_for_all(collections):
    runs = collections[0] / "runs"
    proven = [json.loads((runs / f"proven-{rank}.json").read_text()) for rank in (0, 1)]
    assert proven == [[3, ["step-00000003.safetensors"]], [3, []]]


def test_the_finished_adapter_edits(collections):
    editor = Editor.load(collections[0])
    assert editor.edit(np.zeros((40, 50, 3), np.uint8), ["one"], steps=1).size == (50, 40)


def test_a_run_that_is_held_refuses_a_launch_and_every_process_says_one_line(collections):
    folder = collections[1]
    with hold(folder / "runs" / "held"):
        codes, told = launch_two(["distill", folder, "--run", "held"], folder.parent)
    assert codes == [2, 2]
    said = [[line for line in text.splitlines() if line.startswith("error: ")] for text in told]
    [[refusal], [other]] = said
    assert f"runs/held/lock: this run is held by process {os.getpid()} on " in refusal
    assert other.startswith("error: processes: another process of this launch stopped; see what it says")
    assert "Traceback" not in "".join(told)
    assert not list((folder / "runs" / "held").glob("*.json*"))


def test_a_launch_that_is_not_one_says_so(collections, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE"):
        collectionlora.targets(collections[1])
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(UserError, match="several processes"):
        collectionlora.distill(collections[1], overrides={"model": {"sharding": "fsdp"}})


def test_processes_share_the_modules_of_a_merge_that_is_one_processs(launched, monkeypatch):
    folder = launched[0]
    counts = [json.loads((folder / f"merged-{rank}.json").read_text()) for rank in (0, 1)]
    for owner, name in ((teacher_files, "factorize"), (merging, "shrink")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # `merges` counts their calls
    expected, whole = merges(folder)
    assert whole == {"nearest pairs": 3, "svd": 4, "start": 34}
    for name, number in whole.items():
        assert [count[name] for count in counts] == [number - number // 2, number // 2], name
    for rank in (0, 1):
        found = load_file(folder / f"merged-{rank}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_bench_of_two_processes_is_that_of_one(launched, monkeypatch):
    folder = launched[0] / "judged"
    together = json.loads((folder / "bench" / "metrics.json").read_text())
    shutil.rmtree(folder / "bench")
    judge_quickly(monkeypatch.setattr)
    collectionlora.bench(folder, crops=2)
    alone = json.loads((folder / "bench" / "metrics.json").read_text())
    assert list(together["methods"]) == ["source", "teacher", "student"]
    for name, row in alone["methods"].items():
        for key in ("psnr", "ssim", "concept_accuracy", "general_psnr"):
            assert together["methods"][name][key] == pytest.approx(row[key], abs=1e-3), (name, key)


def test_an_addition_by_two_processes_is_that_of_one_that_accumulates(launched):
    folder = launched[0]
    before = read_lora(folder / "grown" / "collection.before-add.safetensors").weights
    collectionlora.add(folder / "alone", ["mine"], overrides={**ADDITION, "distill": {"accumulate": 2}})
    made, expected = (read_adapter(folder / name / "collection.safetensors") for name in ("grown", "alone"))
    assert list(made[1].effects) == ["sepia", "mine"]
    assert made[1].effects == expected[1].effects
    assert any(not torch.equal(made[0].weights[m][1], before[m][1]) for m in before)
    for module, pair in expected[0].weights.items():
        for found, tensor in zip(made[0].weights[module], pair, strict=True):
            torch.testing.assert_close(found, tensor, atol=1e-4, rtol=1e-3)
