"""What `scripts/gpu` measures on a GPU, over small networks on the CPU."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def gpu(monkeypatch):
    """A module of `scripts/gpu`, by its name."""
    monkeypatch.syspath_prepend(SCRIPTS / "gpu")
    return importlib.import_module


def test_the_script_runs_small_and_writes_as_it_goes(tmp_path):
    parts = ["device", "toy"]
    command = [SCRIPTS / "gpu" / "run.sh", "--tiny", "--out", tmp_path, "--parts", *parts]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == parts
    assert all(entry["seconds_in_all"] >= 0 and "error" not in entry for entry in found.values())
    assert set(found["device"]["matmul_flops_a_second"]) == {"bfloat16", "float32"}
    assert found["toy"]["match"] > 0


def test_only_the_result_is_left_for_the_way_home(gpu, tmp_path, monkeypatch):
    """A part is a process with a log of its own; here it is ended before it does anything."""
    measure = gpu("measure")
    monkeypatch.setattr(measure, "MIN_SECONDS", 0)
    monkeypatch.setitem(measure.SECONDS, "toy", 0.1)
    monkeypatch.setattr(sys, "argv", ["measure.py", "--out", str(tmp_path), "--parts", "toy"])
    with pytest.raises(SystemExit) as ended:
        measure.main()
    assert ended.value.code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
    assert "stopped_after" in json.loads((tmp_path / "gpu.json").read_text())["toy"]


@pytest.mark.parametrize("part", ["qwen-128", "klein-128"])
def test_a_large_base_is_measured_against_its_plan(gpu, tmp_path, part, monkeypatch):
    run, have_moments = gpu("large").MeasuredRun, []
    note = run.note

    def look(self, *args):
        have_moments.append(all(optimizer.state for optimizer in self.optimizers.values()))
        return note(self, *args)

    monkeypatch.setattr(run, "note", look)
    entries = gpu("entries").Entries(tmp_path / "gpu.json", part)
    assert gpu("parts").run_here(part, True, entries)
    entry = entries.read()
    assert have_moments == [True] * 6  # the student's update and the critic's five
    assert set(entry["peak_bytes"]) == {"targets", "student", "critic"}
    assert 0.9 < entry["ratio"]["update"] < 2  # of so small a network the inputs are a large part
    timed = {"two_steps", "forward_base", "forward_student", "learn", "switch", "cycle", "student", "critic"}
    assert set(entry["seconds"]) == timed
    assert entry["flops"]["learn"] > 2 * entry["flops"]["forward"] > 0
    assert 0 < entry["share_of_matmul"]["useful"] < entry["share_of_matmul"]["done"] < 1
    assert set(entry["reference"]) == {"seconds", "bytes", "ours_by_seconds", "ours_by_bytes"}


def test_nano_is_measured_by_its_updates_a_second(gpu, tmp_path):
    entries = gpu("entries").Entries(tmp_path / "gpu.json", "nano")
    assert gpu("parts").run_here("nano", True, entries)
    rates = entries.read()["32px-1"]
    assert rates["match"] > rates["distill"] > 0


def test_a_fault_in_a_part_is_its_entry(gpu, tmp_path, monkeypatch):
    parts, entries = gpu("parts"), gpu("entries").Entries(tmp_path / "gpu.json", "toy")

    def fail(*_):
        raise ValueError("no such device")

    monkeypatch.setitem(parts.PARTS, "toy", fail)
    assert not parts.run_here("toy", True, entries)
    assert entries.read()["error"] == "ValueError: no such device"


def test_a_part_that_fails_or_hangs_is_written_down_and_the_next_one_runs(gpu, tmp_path):
    def run(part, program, seconds):
        entries = gpu("entries").Entries(tmp_path / "gpu.json", part)
        return gpu("parts").run_apart([sys.executable, "-c", program], entries, tmp_path / "log", seconds)

    assert not run("failing", "import sys; sys.exit('about to fail')", 20)
    assert not run("hanging", "import time; time.sleep(60)", 0.5)
    assert run("well", "", 20)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failing"]["exit_code"] == 1
    assert "about to fail" in found["failing"]["log"]
    assert "stopped_after" in found["hanging"]
    assert "well" not in found


def test_failures_of_tests_are_named_with_their_reason(gpu, tmp_path, monkeypatch):
    suite = gpu("suite")
    monkeypatch.setattr(suite, "TESTS", tmp_path)
    monkeypatch.setattr(suite, "PROCESSES", 0)
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_well(): pass\n"
        "def test_badly(): assert 1 == 2, 'one is not two'\n"
        "@pytest.mark.skip\n"
        "def test_never(): pass\n"
    )
    entries = gpu("entries").Entries(tmp_path / "gpu.json", "tests")
    suite.run_tests(("test_some.py",), suite.WIDE_OPTIONS, 30, entries, tmp_path)
    found = entries.read()
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    [(name, reason)] = found["failures"].items()
    assert name.endswith("test_badly")
    assert "one is not two" in reason


def test_the_tests_of_the_method_itself_are_not_left_out(gpu, tmp_path, monkeypatch):
    suite, entries = gpu("suite"), gpu("entries").Entries(tmp_path / "gpu.json", "tests-own")
    monkeypatch.setattr(suite, "PROCESSES", 0)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k test_a_trajectory_copies_nothing")  # a fast one stands for all
    suite.run_tests(suite.OWN, suite.OWN_OPTIONS, 120, entries, tmp_path)
    assert entries.read()["counts"] == {"passed": 1, "failed": 0, "skipped": 0}


def test_that_no_test_passed_is_a_fault(gpu, tmp_path, monkeypatch):
    suite, entries = gpu("suite"), gpu("entries").Entries(tmp_path / "gpu.json", "tests")
    monkeypatch.setattr(suite, "TESTS", tmp_path)
    monkeypatch.setattr(suite, "PROCESSES", 0)
    (tmp_path / "test_some.py").write_text("import pytest\n@pytest.mark.slow\ndef test_never(): pass\n")
    with pytest.raises(RuntimeError, match="no test passed"):
        suite.run_tests(("test_some.py",), ("-m", "not slow"), 30, entries, tmp_path)
    assert entries.read()["counts"] == {"passed": 0, "failed": 0, "skipped": 0}


def test_the_page_shows_what_was_measured_or_that_nothing_was(gpu):
    table = gpu("gpu_table")
    assert f"{table.BEGIN}\n{table.page_part()}\n{table.END}" in table.PAGE.read_text()


def test_the_table_has_a_row_for_every_number_and_for_what_went_wrong(gpu):
    large = {
        "planned_bytes": {"targets": 2**30, "update": 2**31},
        "ratio": {"targets": 1.0, "update": 1.05},
        "seconds": {"cycle": 20.0},
        "lora_overhead": 0.071,
        "share_of_matmul": {"useful": 0.46, "done": 0.6},
        "reference": {"ours_by_seconds": 0.4, "ours_by_bytes": 0.5},
    }
    rates = {"match": 30.0, "distill": 2.0}
    parts = {
        "device": {"device": "a GPU", "torch": "2", "matmul_flops_a_second": {"bfloat16": 7.9e14}},
        "qwen-128": large,
        "nano": {"64px-8": rates},
        "tests-own": {"counts": {"passed": 3, "failed": 0}},
        "klein-128": {"error": "OutOfMemoryError: too much\nmore"},
        "toy": {**rates, "stopped_after": 20},
    }
    text = gpu("gpu_table").write_table(parts)
    assert text.startswith("On a GPU, torch 2.")
    for row in (
        "| matrix product, bfloat16 | 790 TFLOP/s |  |",
        "| qwen-128: peak memory, update | 2.1 GiB of 2.0 planned (+5.0%) | within 10 % |",
        "| qwen-128: LoRA's share of a forward | 7.1% | under 8 % |",
        "| qwen-128: share of matrix products' rate | 46.0% | 45 % |",
        "| nano, 64 px, batch 8 | 30.0 / 2.00 updates a second |  |",
        "| tests-own | 3 passed, 0 failed | some passed, 0 failed |",
        "| klein-128: error | OutOfMemoryError: too much |  |",
        "| toy: stopped after | 20 |  |",
    ):
        assert row in text
