"""A folder's plan counts what lies in it, teachers and photos, and what the methods of a bench need."""

import shutil
from dataclasses import replace

import pytest
import torch
from helpers.random_loras import write_random_loras
from helpers.tiny_collection import open_session, write_collection, write_photos
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import collectionlora
from collectionlora.adapters import lycoris
from collectionlora.adapters.headers import LoraSizes, read_sizes
from collectionlora.adapters.roles import STUDENT, TEACHER
from collectionlora.backbones import family_of
from collectionlora.collection import Collection
from collectionlora.command_line.verbs import app
from collectionlora.config import SettingsError, parse_overrides
from collectionlora.effectbench.running import DEFAULT_CROPS
from collectionlora.planning import guard, peaks
from collectionlora.planning import plan as planning
from collectionlora.planning.forwards import BENCH_EDITS
from collectionlora.planning.plan import plan
from collectionlora.planning.timing import Encoding, estimate_encoding
from collectionlora.planning.workload import make_workload
from collectionlora.system.errors import UserError

RANKS = {"small": 2, "large": 7}  # of the teachers; the student's is 2


@pytest.fixture(autouse=True)
def without_peaks(monkeypatch):
    """Workspaces are not tallied, and encoding takes no time."""
    monkeypatch.setattr(planning, "estimate_encoding", lambda *_: Encoding())
    for name in ("activation_bytes", "sampling_bytes", "teaching_bytes"):
        monkeypatch.setattr(peaks, name, lambda workload: 0)
    monkeypatch.setattr(planning, "vae_bytes", lambda workload: (0, 0))


@pytest.fixture
def collection(tiny_qwen, tmp_path):
    write_photos(tmp_path, 3)
    for name, rank in RANKS.items():
        write_random_loras(tmp_path, [name], str(tiny_qwen), rank)
    prompts = {name: f"make it {name}" for name in RANKS}
    return write_collection(tmp_path, tiny_qwen, prompts, {"model": {"dtype": "bfloat16"}})


def test_a_folder_is_planned_with_the_ranks_of_its_teachers(collection):
    workload = make_workload(collection)
    session = open_session(collection)
    assert workload.ranks()[TEACHER] == session.ranks[TEACHER] == 7
    planned = plan(workload)
    numbers = planned["lora_parameters"] / 2  # of a pair of rank 1 for every module
    assert planned["lora_bytes"] == (2 * 4 * 2 + 2 * 7) * numbers
    # Each file at its own rank, as it lies in the cache.
    assert planned["teacher_library_bytes"] == 2 * (2 + 7) * numbers
    for name in RANKS:
        with safe_open(next(collection.folder.glob(f"cache/teacher-{name}-*")), "pt") as file:
            size = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
        assert size == 2 * RANKS[name] * numbers
    rows = planned["verbs"]
    mapped = planned["teacher_library_bytes"] + planned["base_bytes"]
    assert rows["bench"]["machine_bytes"] - rows["bench"]["host_bytes"] == mapped
    assert peaks.step_of(workload).ranks() == workload.ranks()


def test_a_teacher_that_is_not_there_has_the_students_rank_or_the_one_that_is_named(collection):
    (collection.folder / "large.safetensors").unlink()
    numbers = plan(make_workload(collection, None, None, None, {}))["lora_parameters"] / 2

    def library(*arguments, **rest):
        workload = make_workload(collection, None, *arguments, {}, **rest)
        return plan(workload)["teacher_library_bytes"] / numbers / 2

    assert library(None, None) == 2 + 2
    assert library(None, 5) == 2 + 5  # the student's
    assert library(None, None, teacher_rank=9) == 9 + 9
    assert library(4, None) == 2 + 3 * 2
    write_random_loras(collection.folder, ["large"], collection.manifest.base, 7)
    assert library(1, None) == 2


def test_a_teacher_of_a_large_rank_is_refused_where_the_students_would_fit(collection, monkeypatch):
    # The encoders of the tiny base are larger than its network.
    monkeypatch.setattr(planning, "encoder_bytes", lambda base, model: (0, 0))
    needed = [
        plan(make_workload(collection, None, None, None, {}, teacher_rank=rank))["verbs"]["targets"]
        for rank in (2, None)
    ]
    small, true = (row["device_bytes"] for row in needed)
    assert small < true
    monkeypatch.setattr(guard, "free_bytes", lambda: (small + true) // 2 / (1 - planning.RESERVED_SHARE))
    with pytest.raises(UserError, match="memory: targets: needs"):
        guard.refuse_too_large("targets", collection, {})
    (collection.folder / "large.safetensors").unlink()
    guard.refuse_too_large("targets", collection, {})


def test_the_rank_of_a_pair_is_told_by_the_header(tmp_path):
    """As diffusers, as LoCon's convolution in Tucker form, and of one module that stands for three."""
    base = {"m": torch.zeros(8, 16), "c": torch.zeros(8, 4, 3, 3)}
    tensors = {"m.lora_A.weight": torch.ones(5, 16), "m.lora_B.weight": torch.ones(8, 5)}
    tensors |= {"c.lora_down.weight": torch.ones(2, 4, 1, 1), "c.lora_up.weight": torch.ones(8, 3, 1, 1)}
    tensors["c.lora_mid.weight"] = torch.ones(3, 2, 3, 3)
    save_file(tensors, tmp_path / "a.safetensors")
    assert read_sizes(tmp_path / "a.safetensors", base) == LoraSizes(5, 5 * 24 + 3 * (8 + 36), 0)
    block = "single_transformer_blocks.0"
    names = [f"{block}.attn.to_{one}" for one in "qkv"] + [f"{block}.proj_mlp"]
    pieces = {name: torch.zeros(8, 16) for name in names} | {f"{block}.proj_out": torch.zeros(8, 16)}
    fused = {"lora_A.weight": torch.ones(5, 16), "lora_B.weight": torch.ones(32, 5)}
    save_file({f"single_blocks.0.linear1.{k}": t for k, t in fused.items()}, tmp_path / "b.safetensors")
    assert read_sizes(tmp_path / "b.safetensors", pieces) == LoraSizes(5, 4 * 5 * 24, 0)


def test_the_photos_of_each_effect_are_counted_as_targets_are_made_of_them(collection):
    own = collection.folder / "own"
    (own / "further").mkdir(parents=True)
    for name in ("a.png", "further/a.png", "b.JPG", "c.webp", "d.png", "notes.txt"):
        (own / name).write_bytes((collection.folder / "photos/0.png").read_bytes())
    small, large = collection.effects
    effects = small, large.model_copy(update={"photos": "own"})
    collection = Collection(collection.folder, collection.manifest.model_copy(update={"effects": effects}))
    workload = make_workload(collection, None, None, None, {})
    assert workload.all_photos() == [len(collection.photo_paths(effect)) for effect in effects] == [3, 5]
    each = 2  # one step, guided
    rows = plan(workload, seconds_per_forward=1)["verbs"]
    assert rows["targets"]["seconds"] == each * (3 + 5)
    fewer = make_workload(collection, None, None, None, {}, photos=3)
    less = plan(fewer, seconds_per_forward=1)
    assert less["verbs"]["targets"]["seconds"] == each * (3 + 3)
    assert less["cache_bytes"] < plan(workload)["cache_bytes"]
    assert rows["add"]["seconds"] - less["verbs"]["add"]["seconds"] == each * (5 - 3)
    shared = plan(replace(workload, devices=2), seconds_per_forward=1)["verbs"]
    assert shared["targets"]["seconds"] == each * (3 + 5) / 2
    assert shared["add"]["seconds"] == rows["add"]["seconds"]  # in one process
    shutil.rmtree(own)  # not there yet
    assert make_workload(collection, None, None, None, {}).all_photos() == [3, 20]
    assert make_workload(collection, None, 4, None, {}).all_photos() == [3, 20, 20, 20]


QWEN, KONTEXT = "Qwen/Qwen-Image-Edit-2509", "black-forest-labs/FLUX.1-Kontext-dev"
PLAIN, BASELINES = ["teacher", "student-4"], ["teacher", "stack", "flow-matching", "merge-svd"]


def plan_bench(collection, methods):
    workload = make_workload(collection, None, None, None, {}, methods=methods)
    return workload, plan(workload, seconds_per_forward=1)


@pytest.mark.parametrize("has_exact", [False, True])
def test_a_bench_with_baselines_has_room_for_sums_and_for_what_it_trains(has_exact, collection, monkeypatch):
    # The encoders of the tiny base are larger than its network.
    monkeypatch.setattr(planning, "encoder_bytes", lambda base, model: (0, 0))
    if has_exact:
        monkeypatch.setattr(lycoris, "MAX_RANK", 4)
        whole = {"transformer_blocks.0.attn.to_q.diff": torch.randn(64, 64)}
        save_file(whole, collection.folder / "large.safetensors")
    (without, less), (workload, more) = (plan_bench(collection, methods) for methods in (PLAIN, BASELINES))
    for one, with_sums in ((without, False), (workload, True)):
        assert open_session(collection, with_sums=with_sums).ranks == one.bench_ranks()
    assert workload.bench_ranks()[TEACHER] == (256 if has_exact else 7) + 2
    rows, few = more["verbs"], less["verbs"]
    slots = [one.bench_ranks()[TEACHER] * more["lora_parameters"] for one in (workload, without)]
    pictures = few["bench"]["device_bytes"] + slots[0] - slots[1]  # of bfloat16, and the student's rank is 2
    assert rows["bench"]["device_bytes"] == max(pictures, rows["distill"]["device_bytes"])
    assert rows["bench"]["host_bytes"] > max(rows["distill"]["host_bytes"], few["bench"]["host_bytes"])
    assert rows["bench"]["disk_bytes"] > few["bench"]["disk_bytes"]
    assert {verb: row for verb, row in rows.items() if verb != "bench"} == {
        verb: row for verb, row in few.items() if verb != "bench"
    }


def test_the_hours_of_a_bench_are_those_of_its_methods(collection):
    photos, edits = 2 * DEFAULT_CROPS, BENCH_EDITS

    def hours(*methods, **layer):
        workload = make_workload(collection, None, None, None, layer, methods=methods)
        return plan(workload, seconds_per_forward=1)["verbs"]["bench"]["seconds"]

    few, many, dial = 8, 2, 2 * 5
    assert hours("source", "truth") == 0
    assert hours("teacher") == many * (photos + edits)
    assert hours("teacher-4") == 8 * (photos + edits)
    assert hours("student", "student-4") == (few + 4) * (photos + edits) + few * dial
    nothing = {"student_updates": 0}
    assert hours("stack", "merge-svd", distill=nothing) == 2 * few * (photos + edits)
    # One update of the general stream, guided: 2 + 3 forwards, two backwards with one more.
    both = {"student_updates": 1}
    trained = hours("stack", distill=both) - hours("stack", distill=nothing)
    assert trained == 2 + 3 + 2 + 2 * 2
    more = hours("stack", "flow-matching", distill=both) - hours("stack", "flow-matching", distill=nothing)
    assert more == trained + 1 + 2


def test_the_guard_knows_the_methods_of_a_bench(collection, monkeypatch):
    monkeypatch.setattr(planning, "encoder_bytes", lambda base, model: (0, 0))
    small, large = (
        plan_bench(collection, methods)[1]["verbs"]["bench"]["device_bytes"] for methods in (PLAIN, BASELINES)
    )
    assert small < large
    monkeypatch.setattr(guard, "free_bytes", lambda: (small + large) // 2 / (1 - planning.RESERVED_SHARE))
    arguments = ["bench", str(collection.folder), "--methods"]
    error = CliRunner().invoke(app, [*arguments, ",".join(BASELINES)]).exception
    assert str(error).startswith("memory: bench: needs")
    with pytest.raises(UserError, match="memory: bench: needs"):
        collectionlora.bench(collection, methods=BASELINES)
    error = CliRunner().invoke(app, [*arguments, ",".join(PLAIN)]).exception
    assert "memory" not in str(error)  # there is no adapter yet


def test_a_plan_of_methods_that_are_not_there_is_refused(collection):
    with pytest.raises(UserError, match="'stak' is not a method"):
        make_workload(collection, None, None, None, {}, methods=["stak"])
    with pytest.raises(UserError, match="name a run together with its folder"):
        make_workload(None, "nano", None, None, {}, methods=["stak"])


def test_a_finished_adapter_of_a_larger_rank_is_judged_in_a_slot_of_its_own_rank(collection):
    write_random_loras(collection.folder, ["collection"], collection.manifest.base, 5)
    workload, _ = plan_bench(collection, ["student"])
    assert workload.bench_ranks() == {STUDENT: 5, TEACHER: 7}
    assert workload.ranks()[STUDENT] == 2
    collection.result.write_bytes(b"broken")
    assert plan_bench(collection, ["student"])[0].judged_rank == 0


@pytest.mark.parametrize(("base", "texts"), [(QWEN, 40_000), (KONTEXT, 20_000)])
def test_the_general_stream_takes_time_to_be_encoded(base, texts, monkeypatch):
    """An item has a photo and two texts; a base that reads texts alone encodes the empty one once."""
    monkeypatch.setattr(planning, "estimate_encoding", estimate_encoding)
    few, many = (make_workload(None, base, 1, None, {"targets": {"general": items}}) for items in (1, 20_001))
    more = [plan(workload, seconds_per_forward=1)["verbs"]["targets"]["seconds"] for workload in (many, few)]
    backbone = peaks.load_empty(few, {})
    encoding = estimate_encoding(few, backbone, family_of(base).encoder_size(base).parameters)
    assert more[0] - more[1] == pytest.approx(20_000 * encoding.photo + texts * encoding.text, rel=1e-3)
    assert 0.01 < encoding.photo < 0.1
    assert 0.01 < encoding.text < 0.1


def test_a_composition_takes_a_sample_and_lies_in_the_cache_like_an_ordinary_edit():
    def count(compositions, general=10):
        targets = {"compositions": compositions, "general": general, "steps": 3, "guidance_scale": 2}
        layer = {"targets": targets, "match": {"updates": 5, "loss": "flow"}}
        found = plan(make_workload(None, "nano", 4, None, layer), seconds_per_forward=1)
        return [found["verbs"][verb]["seconds"] for verb in ("targets", "add")], found["cache_bytes"]

    items, sample = 4 * 8, 2 * 3
    for more, none in zip(count(8)[0], count(0)[0], strict=True):
        assert more - none == items * sample
    assert count(8)[1] == count(0, 10 + items)[1]


def test_where_prompts_see_the_photo_a_composition_has_two_prompts_more():
    """The second teacher's and the empty one, which are read beside the first teacher's picture."""

    def count(compositions, general, base):
        targets = {"compositions": compositions, "general": general}
        layer = {"targets": targets, "match": {"updates": 5, "loss": "flow"}}
        found = plan(make_workload(None, base, 2, None, layer), seconds_per_forward=1)
        return found["cache_bytes"]

    none, item, composition = (
        count(number, general, "Qwen/Qwen-Image-Edit-2509") for number, general in ((0, 8), (0, 16), (4, 8))
    )
    more_items, more_compositions = item - none, composition - none  # eight of both
    assert more_items < more_compositions < 2 * more_items


@pytest.mark.parametrize(
    "assignment", ["distill.moments=8bit", "model.compile=true", "model.quantization=nf4"]
)
def test_a_plan_in_shards_refuses_what_no_run_in_shards_accepts(assignment):
    layer = parse_overrides([assignment])
    make_workload(None, "Qwen/Qwen-Image-Edit-2509", 2, None, layer, sharding="ddp", devices=8)
    with pytest.raises(SettingsError, match=r"sharding|moments"):
        make_workload(None, "Qwen/Qwen-Image-Edit-2509", 2, None, layer, sharding="fsdp", devices=8)
