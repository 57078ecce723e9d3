"""A folder's plan counts what lies in it: its teachers' files and its photos."""

import shutil

import pytest
import torch
from helpers.random_loras import write_random_loras
from helpers.tiny_collection import open_session, write_collection, write_photos
from safetensors import safe_open
from safetensors.torch import save_file

from collectionlora.adapters.headers import LoraSizes, read_sizes
from collectionlora.adapters.roles import TEACHER
from collectionlora.collection import Collection
from collectionlora.planning import guard, peaks
from collectionlora.planning import plan as planning
from collectionlora.planning.plan import plan
from collectionlora.planning.workload import make_workload
from collectionlora.system.errors import UserError

RANKS = {"small": 2, "large": 7}  # of the teachers; the student's is 2


@pytest.fixture(autouse=True)
def without_peaks(monkeypatch):
    """Workspaces are not tallied: they are nothing."""
    for name in ("activation_bytes", "sampling_bytes", "teaching_bytes"):
        monkeypatch.setattr(planning, name, lambda workload: 0)
    monkeypatch.setattr(planning, "vae_bytes", lambda workload: (0, 0))


@pytest.fixture
def collection(tiny_qwen, tmp_path):
    write_photos(tmp_path, 3)
    for name, rank in RANKS.items():
        write_random_loras(tmp_path, [name], str(tiny_qwen), rank)
    prompts = {name: f"make it {name}" for name in RANKS}
    return write_collection(tmp_path, tiny_qwen, prompts, {"model": {"dtype": "bfloat16"}})


def test_a_folder_is_planned_with_the_ranks_of_its_teachers(collection):
    workload = make_workload(collection, None, None, None, {})
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
    assert rows["bench"]["machine_bytes"] - rows["bench"]["host_bytes"] == planned["teacher_library_bytes"]
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
    monkeypatch.setattr(planning, "encoder_bytes", lambda base, each: 0)
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
    shutil.rmtree(own)  # not there yet
    assert make_workload(collection, None, None, None, {}).all_photos() == [3, 20]
    assert make_workload(collection, None, 4, None, {}).all_photos() == [3, 20, 20, 20]
