"""Every verb's plan over true configurations: what fits which device, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import collectionlora
from collectionlora.adapters.recipe import Recipe, write_adapter
from collectionlora.backbones import family_of
from collectionlora.command_line.studio import load_studio
from collectionlora.command_line.verbs import app
from collectionlora.config import ModelSettings, parse_overrides, resolve
from collectionlora.planning import guard, peaks
from collectionlora.planning import plan as planning
from collectionlora.planning.plan import GIB, fits, plan
from collectionlora.planning.rows import VERBS
from collectionlora.planning.timing import Encoding
from collectionlora.planning.workload import Workload
from collectionlora.system.errors import UserError, explain_fault

QWEN, KONTEXT = "Qwen/Qwen-Image-Edit-2509", "black-forest-labs/FLUX.1-Kontext-dev"
LARGE_DEVICE, SMALL_DEVICE = "A100/H100 80 GB", "RTX 4090 24 GB"
PAPER = ["distill.moments=8bit"]  # rank 128 and 1024 pixels are what large bases have by default
FOUR_BITS = ["model.quantization=nf4", "data.resolution=512", "student.rank=16", "critic.rank=16"]


def make_workload(base, assignments, **rest):
    return Workload(
        base, 50, resolve(family_of(base).recommended_settings(base), parse_overrides(assignments)), **rest
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("base", "assignments", "device"),
    [
        (QWEN, PAPER, LARGE_DEVICE),
        (KONTEXT, FOUR_BITS, SMALL_DEVICE),
        (KONTEXT, PAPER, LARGE_DEVICE),
        (QWEN, FOUR_BITS, SMALL_DEVICE),
    ],
)
def test_every_verb_fits_the_device_that_its_recipe_names(base, assignments, device):
    planned = plan(make_workload(base, assignments))
    assert planned["fits"][device]
    assert set(planned["verbs"]) == set(VERBS)
    for verb, row in planned["verbs"].items():
        assert fits(row["device_bytes"], device), verb
        assert row["seconds"] >= 0


@pytest.mark.thorough
def test_target_making_and_teaching_take_one_large_photo_at_a_time():
    workload = peaks.step_of(make_workload(QWEN, []))
    # Sixteen photos, doubled by guidance, took 43.9 GiB; eight pairs of a teaching step 41.5 GiB.
    assert peaks.sampling_bytes(workload) < 4 * GIB
    assert peaks.teaching_bytes(workload) < 7 * GIB
    # Shallow networks tell the true depth exactly.
    assert max(peaks.sampling_peaks(workload, {})) == peaks.sampling_bytes(workload)


@pytest.fixture
def without_peaks(monkeypatch):
    """Workspaces are not tallied, and encoding takes no time."""
    monkeypatch.setattr(planning, "estimate_encoding", lambda *_: Encoding())
    for name in ("activation_bytes", "sampling_bytes", "teaching_bytes"):
        monkeypatch.setattr(peaks, name, lambda workload: 0)


@pytest.mark.parametrize(("base", "gib"), [("Qwen/Qwen-Image-2.1", 6.5), (QWEN, 3.5), (KONTEXT, 1.5)])
def test_what_a_vae_makes_for_a_photo_is_as_the_docs_say(base, gib):
    _, picture = peaks.vae_bytes(peaks.step_of(make_workload(base, [])))
    assert picture / GIB == pytest.approx(gib, abs=0.05)


def test_pictures_are_decoded_beside_the_network_and_encoded_beside_the_text_encoders(without_peaks):
    small, large = (make_workload(QWEN, [f"data.resolution={side}"]) for side in (512, 1024))
    weights, picture = peaks.vae_bytes(peaks.step_of(large))
    backbone = peaks.load_empty(large, {})
    areas = [math.prod(peaks.working_sizes(workload, backbone)[0]) for workload in (small, large)]
    assert peaks.vae_bytes(peaks.step_of(small))[1] == pytest.approx(picture * areas[0] / areas[1], rel=2e-3)
    planned = plan(large)
    rows = {verb: row["device_bytes"] for verb, row in planned["verbs"].items()}
    student = planned["lora_parameters"] * 4
    shown = weights + picture
    # A whole base takes the student into its weights before the first picture, layer by layer.
    layer = 3072 * 6 * 3072  # the largest, a modulation
    merging = 2 * (2 * layer + 128 * 7 * 3072)
    assert rows["edit"] == planned["base_bytes"] + max(merging, shown)
    assert rows["bench"] == planned["base_bytes"] + student + planned["lora_parameters"] * 2 + shown
    assert rows["studio"] - rows["edit"] == planned["encoding_bytes"]
    assert rows["prompts"] == planned["encoding_bytes"] + weights + picture


def test_mapped_files_are_held_once_for_all_processes_of_a_machine(without_peaks):
    shared = [make_workload(QWEN, [], devices=devices, sharding="fsdp") for devices in (2, 8)]
    planned = [plan(workload)["verbs"] for workload in shared]
    one, eight = (verbs["distill"] for verbs in planned)
    teachers = plan(make_workload(QWEN, []))["teacher_library_bytes"]
    assert teachers / GIB == pytest.approx(50 * 2.197, rel=0.01)
    assert one["host_bytes"] == eight["host_bytes"]
    whole = 2 * 20_430_401_088  # read before there is anything to checkpoint
    each = planned[1]["targets"]["host_bytes"]
    copied = eight["host_bytes"] - each  # a checkpoint, by the main process alone
    assert copied > 2**30
    assert eight["machine_bytes"] == 8 * each + max(copied, whole) + teachers
    packed = plan(make_workload(QWEN, ["model.quantization=nf4"], devices=8))["verbs"]
    assert packed["targets"]["machine_bytes"] == 8 * packed["targets"]["host_bytes"] + whole + teachers
    assert packed["edit"]["machine_bytes"] == packed["edit"]["host_bytes"] + whole
    assert packed["edit"]["host_bytes"] == 2 * GIB  # the base is no part of it


@pytest.mark.parametrize(
    ("base", "devices", "prompts"), [(QWEN, 1, 50 * 24), (QWEN, 8, 7 * 24), (KONTEXT, 1, 50)]
)
def test_a_bench_holds_the_prompts_of_teachers_and_student(base, devices, prompts, without_peaks):
    """In bfloat16; a base whose encoder sees the photo has one for each photo of an effect."""
    workload = make_workload(base, [], devices=devices)
    backbone = family_of(base).without_weights(base, workload.settings.model, {})
    numbers = math.prod(backbone.shapes((1024, 1024)).tokens)
    assert plan(workload)["verbs"]["bench"]["host_bytes"] == 2 * GIB + 2 * prompts * 2 * numbers


def test_hours_follow_from_the_seconds_of_a_forward(without_peaks):
    workload = make_workload(QWEN, ["targets.guidance_scale=4"])
    rows = plan(workload, seconds_per_forward=0.5)["verbs"]
    assert rows["targets"]["seconds"] == 0.5 * 50 * 20 * 40 * 2  # effects, photos, steps, branches
    assert rows["edit"]["seconds"] == 0.5 * 8
    assert all(math.isfinite(row["seconds"]) for row in rows.values())
    warm = make_workload(QWEN, ["targets.guidance_scale=4", "match.updates=1"])
    # Nobody has said it: 20.4 G parameters, 2 x 4096 tokens and the prompt's on an A100.
    estimated = plan(workload)
    assert estimated["clock"] == "an A100, by arithmetic"
    assert estimated["seconds_per_forward"] == pytest.approx(2.9, abs=0.2)
    more = plan(warm, seconds_per_forward=0.5)["verbs"]["targets"]["seconds"]
    assert more - rows["targets"]["seconds"] == 0.5 * 256 * 40 * 2  # ordinary instructions


@pytest.fixture
def collection(tmp_path):
    """A collection over the true Qwen-Image-Edit-2509, of which nothing is on this machine."""
    effect = {"name": "warm", "teacher": "warm.safetensors", "teacher_prompt": "warm", "photos": "photos"}
    general = {"photos": "photos", "prompts": "general.txt"}
    (tmp_path / "collection.yaml").write_text(
        yaml.safe_dump({"base": QWEN, "effects": [effect], "general": general})
    )
    return tmp_path


@pytest.mark.parametrize("verb", ["teach", "prompts", "targets", "distill", "bench", "add"])
def test_a_verb_that_needs_more_than_is_free_is_refused_before_anything_is_loaded(
    verb, collection, monkeypatch
):
    monkeypatch.setattr(guard, "free_bytes", lambda: 12 * GIB)
    before = sorted(collection.iterdir())
    arguments = [verb, str(collection), *(["warm"] if verb == "add" else [])]
    error = CliRunner().invoke(app, arguments).exception
    assert str(error).startswith(f"memory: {verb}: needs ")
    assert "GiB by plan, 12.0 GiB of the GPU are free; collectionlora plan" in str(error)
    assert sorted(collection.iterdir()) == before


@pytest.mark.parametrize("verb", ["teach", "prompts", "targets", "distill", "bench", "add"])
def test_a_function_is_compared_once_from_python_and_from_the_command_line(verb, collection, monkeypatch):
    planned = []

    def count(workload, asked):
        planned.append(workload.settings.student.rank)
        assert asked == verb
        return 99 * GIB

    monkeypatch.setattr(guard, "free_bytes", lambda: 12 * GIB)
    monkeypatch.setattr(planning, "plan_device", count)
    names = {"names": ["warm"]} if verb == "add" else {}
    with pytest.raises(UserError, match=rf"memory: {verb}: needs 99\.0 GiB by plan"):
        getattr(collectionlora, verb)(collection, **names, overrides={"student": {"rank": 4}})
    assert planned == [4]
    more = ["warm"] if verb == "add" else []
    result = CliRunner().invoke(app, [verb, str(collection), *more, "--set", "student.rank=5"])
    assert "needs 99.0 GiB by plan" in str(result.exception)
    assert planned == [4, 5]


@pytest.mark.thorough
def test_an_edit_over_a_large_base_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "free_bytes", lambda: 12 * GIB)
    for name in ("activation_bytes", "teaching_bytes"):  # no training is tallied for it
        monkeypatch.delattr(peaks, name)
    model = ModelSettings(dtype="bfloat16", sharding="fsdp")  # as it was trained
    recipe = Recipe(
        base=QWEN, model=model, steps=8, shift=3.0, resolution=1024, effects={"a": "x"}, version="1"
    )
    write_adapter(tmp_path / "one.safetensors", {"layer": (torch.ones(4, 8), torch.ones(8, 4))}, recipe)
    with pytest.raises(UserError, match=r"memory: edit: needs 41.*--quantization nf4"):
        collectionlora.edit(tmp_path / "one.safetensors", np.zeros((32, 32, 3), np.uint8), "a")
    with pytest.raises(UserError, match="10000"):
        collectionlora.edit(tmp_path / "one.safetensors", np.zeros((32, 32, 3), np.uint8), "a", size=10000)
    with pytest.raises(UserError, match=r"memory: studio: needs 57.*--quantization nf4"):
        load_studio(tmp_path / "one.safetensors", 8, None)
    monkeypatch.setattr(guard, "free_bytes", lambda: 32 * GIB)
    with pytest.raises(UserError, match="memory: studio: needs 31"):
        load_studio(tmp_path / "one.safetensors", 8, "int8")
    guard.refuse_too_large_adapter("studio", tmp_path / "one.safetensors", quantization="nf4")


def test_an_edit_is_compared_when_nothing_else_is_wrong(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(guard, "refuse_too_large_adapter", lambda *about: asked.append(about))
    Image.new("RGB", (64, 64)).save(tmp_path / "me.png")
    arguments = ["edit", "nano", str(tmp_path / "me.png"), "--steps", "1", "--effect"]
    assert "is not in this collection" in str(CliRunner().invoke(app, [*arguments, "termal"]).exception)
    assert asked == []
    assert CliRunner().invoke(app, [*arguments, "thermal", "--size", "64"]).exit_code == 0
    assert asked == [("edit", Path("nano"), 64, None)]


def test_without_a_gpu_and_for_the_small_base_nothing_is_refused(collection, monkeypatch):
    guard.refuse_too_large("distill", collection, {})
    monkeypatch.setattr(guard, "free_bytes", lambda: 1)
    manifest = yaml.safe_load((collection / "collection.yaml").read_text()) | {"base": "nano"}
    (collection / "collection.yaml").write_text(yaml.safe_dump(manifest))
    guard.refuse_too_large("distill", collection, {})
    guard.refuse_too_large_adapter("edit", Path("nano"))


def test_the_command_line_shows_every_verb():
    arguments = ["plan", "--base", "nano", "--effects", "4", "--seconds-per-forward", "0.01", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["verbs"]
    assert list(rows) == list(VERBS)
    keys = {"device_bytes", "host_bytes", "machine_bytes", "disk_bytes", "seconds"}
    assert all(set(row) == keys for row in rows.values())


def test_memory_that_runs_out_in_the_middle_is_one_line_that_says_what_to_lower():
    fault = explain_fault(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert "; lower data.resolution, distill.batch_size" in str(fault)
    assert "; what is saved is kept; collectionlora plan counts" in str(fault)
    assert "distill.moments=8bit" in str(fault)
    assert "\n" not in str(fault)
