"""What `scripts/gpu` measures on a GPU, over small networks on the CPU."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def gpu(monkeypatch):
    """A module of `scripts/gpu`, by its name."""
    monkeypatch.syspath_prepend(SCRIPTS / "gpu")
    return importlib.import_module


def test_the_whole_script_runs_small_and_writes_as_it_goes(tmp_path):
    parts = ["device", "qwen-128", "nano", "toy"]
    command = [SCRIPTS / "gpu" / "run.sh", "--tiny", "--out", tmp_path, "--parts", *parts]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == parts
    assert all(entry["seconds_in_all"] >= 0 and "error" not in entry for entry in found.values())
    assert set(found["device"]["matmul_flops_a_second"]) == {"bfloat16", "float32"}
    assert found["toy"]["match"] > 0
    assert found["nano"]["32px-1"]["distill"] > 0
    check_large(found["qwen-128"])


def check_large(entry):
    assert set(entry["peak_bytes"]) == {"targets", "student", "critic"}
    assert 0.9 < entry["ratio"]["update"] < 2  # of so small a network the inputs are a large part
    timed = {"two_steps", "forward_base", "forward_student", "learn", "switch", "cycle", "student", "critic"}
    assert set(entry["seconds"]) == timed
    assert entry["flops"]["learn"] > 2 * entry["flops"]["forward"] > 0
    assert 0 < entry["share_of_matmul"]["useful"] < entry["share_of_matmul"]["done"] < 1
    assert set(entry["reference"]) == {"seconds", "bytes", "ours_by_seconds", "ours_by_bytes"}


def test_the_other_large_base_is_measured_the_same_way(gpu, tmp_path):
    entries = gpu("entries").Entries(tmp_path, "klein")
    gpu("large").measure_large("klein", 2, 1, True, entries, tmp_path / "base")
    check_large(entries.read())


def test_a_part_that_fails_or_hangs_is_written_down_and_the_next_one_runs(gpu, tmp_path):
    script = tmp_path / "part.py"
    script.write_text("import sys, time\nprint('about to fail', file=sys.stderr)\nsys.exit(3)\n")
    run_apart = gpu("parts").run_apart
    assert not run_apart([sys.executable, str(script)], "failing", tmp_path, 20)
    script.write_text("import time\ntime.sleep(60)\n")
    assert not run_apart([sys.executable, str(script)], "hanging", tmp_path, 0.5)
    script.write_text("")
    assert run_apart([sys.executable, str(script)], "well", tmp_path, 20)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failing"]["exit_code"] == 3
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
    entries = gpu("entries").Entries(tmp_path, "tests")
    suite.run_tests(("test_some.py",), 30, entries, tmp_path)
    found = entries.read()
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    [(name, reason)] = found["failures"].items()
    assert name.endswith("test_badly")
    assert "one is not two" in reason
