"""A plan against real steps, against the counts of true configurations, and its words on the command line."""

import json
from pathlib import Path

import pytest
from helpers.measure_step import SMALL, measure, write_base
from typer.testing import CliRunner

from collectionlora.backbones import family_of
from collectionlora.command_line.verbs import app
from collectionlora.config import resolve
from collectionlora.planning import peaks
from collectionlora.planning.advice import advise
from collectionlora.planning.forwards import count_forwards
from collectionlora.planning.plan import base_bytes, plan
from collectionlora.planning.workload import Workload, make_workload
from collectionlora.system.errors import UserError

QWEN, KONTEXT = "Qwen/Qwen-Image-Edit-2509", "black-forest-labs/FLUX.1-Kontext-dev"


@pytest.fixture
def step_alone(monkeypatch):
    """Of the workspaces only a distillation step's is tallied."""
    monkeypatch.setattr(peaks, "sampling_bytes", lambda workload: 0)
    monkeypatch.setattr(peaks, "teaching_bytes", lambda workload: 0)


@pytest.fixture
def without_peaks(step_alone, monkeypatch):
    """No workspace is tallied: a step's is 5 GiB."""
    monkeypatch.setattr(peaks, "activation_bytes", lambda workload: 5 * 2**30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("small"))


@pytest.mark.thorough
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_is_the_peak_of_real_steps(folder, checkpointing, step_alone):
    settings = resolve(SMALL, {"model": {"gradient_checkpointing": checkpointing}})
    planned = plan(Workload(folder, 1, settings))["total_bytes_per_device"]
    assert planned == pytest.approx(measure(folder, settings), rel=0.15)


@pytest.mark.parametrize(
    ("base", "parameters", "modules", "lora"),
    [(QWEN, 20_430_401_088, 846, 1_183_694_848), (KONTEXT, 11_901_408_320, 504, None)],
)
def test_true_configurations_are_counted_without_the_model(base, parameters, modules, lora, without_peaks):
    result = plan(Workload(base, 50, resolve(family_of(base).recommended_settings(base))))
    assert result["base_parameters"] == parameters
    assert result["base_bytes"] == 2 * parameters
    assert result["lora_modules"] == modules
    if lora:
        assert result["lora_parameters"] == lora
        assert result["adapter_bytes"] / 2**30 == pytest.approx(2.205, abs=1e-3)
        assert result["lora_bytes"] == (2 * 4 + 2) * lora  # the teacher's is as the base, bfloat16
        # Gradients of one role at a time, and moments; the average is on the host.
        assert result["optimizer_bytes"] == (1 + 2 * 2) * 4 * lora
    assert result["encoding_bytes"] == 2 * family_of(base).encoder_size(base).parameters


@pytest.mark.parametrize(("kind", "gigabytes"), [("int8", 20.5), ("nf4", 10.6)])
def test_a_quantised_base_has_its_packed_size(kind, gigabytes):
    settings = resolve({"model": {"dtype": "bfloat16", "quantization": kind}})
    backbone = family_of(QWEN).without_weights(QWEN, settings.model, {})
    size = base_bytes(backbone.network, settings)
    assert size / 1e9 == pytest.approx(gigabytes, abs=0.1)


@pytest.mark.parametrize(
    ("layer", "counts"),
    [
        ({"distill": {"guidance_scale": 5}}, (22, 8)),
        ({"distill": {"guidance_scale": 1}}, (20, 8)),
        ({"distill": {"target_weight": 0}}, (18, 7)),
        ({"distill": {"anchor_weight": 0, "guidance_scale": 5}}, (21, 7)),
    ],
)
def test_forwards_and_backwards_as_in_a_run(layer, counts):
    assert count_forwards(resolve(layer)) == counts


@pytest.mark.thorough
def test_deeper_networks_are_told_from_shallow_ones(folder, monkeypatch):
    request = Workload(folder, 1, resolve(SMALL))
    told = peaks.activation_bytes(request)  # which an earlier test may have asked for
    monkeypatch.setattr(peaks, "SHALLOW", 4)
    assert peaks.activation_bytes.__wrapped__(request) == told


@pytest.mark.thorough
def test_accumulated_batches_hold_their_gradients_twice_and_are_counted(folder, step_alone):
    once, often = (
        plan(Workload(folder, 1, resolve(SMALL, {"distill": {"accumulate": number}}))) for number in (1, 4)
    )
    assert often["images_per_student_update"] == 4 * once["images_per_student_update"]
    assert often["total_bytes_per_device"] > once["total_bytes_per_device"]


def test_devices_share_and_advice_leads_to_a_device_that_fits(without_peaks):
    settings = resolve(family_of(QWEN).recommended_settings(QWEN))
    alone = plan(Workload(QWEN, 50, settings))
    shared = plan(Workload(QWEN, 50, settings, devices=8, sharding="fsdp"))
    student = alone["lora_bytes"] / 2.5
    slot = student / 2  # whole on each device
    # The average is on the host of one device, and in shards of several.
    held = alone["base_bytes"] + alone["lora_bytes"] + alone["optimizer_bytes"] + student
    rest = shared["activation_bytes"] + shared["gathered_bytes"]
    assert shared["total_bytes_per_device"] == pytest.approx((held - slot) / 8 + slot + rest, abs=1)
    # Two of 60 blocks with student and critic, and a block's gradient twice.
    block = (alone["base_bytes"] + 2 * student) / 60
    assert 2 * block < shared["gathered_bytes"] < 2 * (block + student / 60)
    assert not alone["fits"]["A100/H100 80 GB"]
    assert shared["fits"]["A100/H100 80 GB"]
    # A step would fit, but what is sharded was whole.
    assert shared["total_bytes_per_device"] < 30e9
    assert shared["start_bytes"] == alone["base_bytes"] + alone["lora_bytes"]
    assert not shared["fits"]["L40S/A6000 48 GB"]
    changes = advise(Workload(QWEN, 50, settings))
    totals = [change["total_bytes_per_device"] for change in changes]
    assert totals == sorted(totals, reverse=True)
    assert changes[0]["change"] == "--set distill.moments=8bit"
    assert "A100/H100 80 GB" in changes[0]["fits"]
    assert "RTX 4090 24 GB" in changes[-1]["fits"]


@pytest.mark.thorough
def test_the_sharding_of_a_plan_is_that_of_the_settings(without_peaks):
    layer = {"model": {"sharding": "fsdp"}}
    request = make_workload(None, QWEN, 50, 128, layer, devices=2)
    assert request.sharding == "fsdp"
    assert plan(request)["gathered_bytes"] > 0
    assert not any("quantization" in change["change"] for change in advise(request))
    assert make_workload(None, QWEN, 50, 128, layer, sharding="ddp").sharding == "ddp"
    assert make_workload(None, QWEN, 50, 128, {}).sharding == "ddp"


@pytest.mark.thorough
def test_on_the_command_line():
    result = CliRunner().invoke(app, ["plan", "--base", "nano", "--effects", "4", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["base_parameters"] > 1e6
    assert all(found["fits"].values())
    assert found["advice"] == []


def test_bad_requests_are_one_line(folder):
    for arguments in ((None, None), (Path("folder"), "nano")):
        with pytest.raises(UserError, match="folder or --base"):
            make_workload(*arguments, 1, 8, {}, sharding="ddp")
    with pytest.raises(UserError, match="ddp or fsdp"):
        make_workload(None, "nano", 1, 8, {}, sharding="half")
    with pytest.raises(UserError, match="the nano base cannot be sharded"):
        plan(Workload("nano", 1, resolve(), devices=2, sharding="fsdp"))
    with pytest.raises(UserError, match="multiple of 32"):
        plan(Workload(folder, 1, resolve(SMALL, {"data": {"resolution": 100}})))
    with pytest.raises(UserError, match="cannot be opened"):
        make_workload(None, str(Path(folder) / "transformer"), 1, 8, {}, sharding="ddp")
