"""The tests that compute, on the device that is here."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from entries import Entries

PROCESSES = min(8, os.cpu_count() or 1)
TESTS = Path(__file__).parents[2] / "tests"
OWN = ("test_device.py",)
# Its cases are marked thorough, which pytest leaves out by itself; one file is dealt out test by test.
OWN_OPTIONS = ("-m", "not slow", "--dist", "load")
# What a GPU may answer otherwise than a CPU: a fault here is a reason to look, not yet a bug.
WIDE = (
    *("test_roles.py", "test_objectives.py", "test_flow.py", "test_sampling.py", "test_streams.py"),
    *("test_distillation.py", "test_trainer.py", "test_true_scale.py", "test_backbones.py", "test_nano.py"),
    *("test_editing.py", "test_growing.py", "test_watching.py", "test_toy_world.py", "test_formats.py"),
)
WIDE_OPTIONS = ("--dist", "loadfile")


def run_tests(
    names: tuple[str, ...], options: tuple[str, ...], timeout: float, entries: Entries, folder: Path
) -> None:
    """Counts, and what failed with the end of its reason.

    Raises:
        RuntimeError: not one test passed, so nothing is known.
    """
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["-n", str(PROCESSES), *options, *(str(TESTS / name) for name in names)]
    log = folder / "pytest.log"
    with log.open("w") as lines:
        try:
            subprocess.run(command, stdout=lines, stderr=lines, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            entries.put(stopped_after=timeout)
    counts = read_report(report, entries) if report.exists() else {}
    if not counts.get("passed"):
        entries.put(log=log.read_text()[-4000:])
        raise RuntimeError("no test passed")


def read_report(report: Path, entries: Entries) -> dict[str, int]:
    """The counts of pytest's XML, which are put into the entry with what failed."""
    failed, counts = {}, {"passed": 0, "failed": 0, "skipped": 0}
    for case in ET.parse(report).getroot().iter("testcase"):
        fault = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        skipped = case.find("skipped") is not None
        counts["skipped" if skipped else "failed" if fault is not None else "passed"] += 1
        if fault is not None:
            failed[f"{case.get('classname')}::{case.get('name')}"] = (fault.get("message") or "")[:400]
    entries.put(counts=counts, failures=failed)
    return counts
