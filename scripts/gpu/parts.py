"""The parts of the measurement: what each does, how long it may take, and how one is run."""

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from entries import Entries

Work = Callable[[bool, Entries, Path], None]  # whether tiny, where results go, an empty folder


def device(tiny: bool, entries: Entries, _folder: Path) -> None:
    from small import measure_device

    measure_device(tiny, entries)


def nano(tiny: bool, entries: Entries, _folder: Path) -> None:
    from small import measure_nano

    measure_nano(tiny, entries)


def toy(tiny: bool, entries: Entries, _folder: Path) -> None:
    from small import measure_toy

    measure_toy(tiny, entries)


def large(name: str, rank: int, cycles: int) -> Work:
    def work(tiny: bool, entries: Entries, folder: Path) -> None:
        from large import measure_large

        measure_large(name, 2 if tiny else rank, 1 if tiny else cycles, tiny, entries, folder / "base")

    return work


def own_tests(_tiny: bool, entries: Entries, folder: Path) -> None:
    from suite import OWN, OWN_OPTIONS, run_tests

    run_tests(OWN, OWN_OPTIONS, SECONDS["tests-own"] - 5, entries, folder)


def wide_tests(_tiny: bool, entries: Entries, folder: Path) -> None:
    from suite import WIDE, WIDE_OPTIONS, run_tests

    run_tests(WIDE, WIDE_OPTIONS, SECONDS["tests-wide"] - 5, entries, folder)


# In the order of their worth.
PARTS: dict[str, Work] = {
    "device": device,
    "tests-own": own_tests,
    "qwen-128": large("qwen", 128, 2),
    "qwen-32": large("qwen", 32, 1),
    "nano": nano,
    "klein-128": large("klein", 128, 2),
    "qwen-64": large("qwen", 64, 1),
    "toy": toy,
    "tests-wide": wide_tests,
}
SECONDS = {
    **{"device": 30, "tests-own": 75, "qwen-128": 150, "qwen-32": 75, "nano": 45, "klein-128": 60},
    **{"qwen-64": 75, "toy": 20, "tests-wide": 110},
}


def run_here(name: str, tiny: bool, entries: Entries) -> bool:
    """One part in this process; whether it went well. Its fault is in its entry."""
    began = time.perf_counter()
    try:
        with TemporaryDirectory() as folder:
            PARTS[name](tiny, entries, Path(folder))
    except Exception as error:
        traceback.print_exc()
        entries.put(error=f"{type(error).__name__}: {error}"[:2000])
        return False
    finally:
        entries.put(seconds_in_all=round(time.perf_counter() - began, 1))
    return True


def run_apart(command: Sequence[str], entries: Entries, log: Path, seconds: float) -> bool:
    """A command as a process that is ended, with all that it started, after its seconds."""
    with log.open("w") as lines:
        process = subprocess.Popen(command, stdout=lines, stderr=lines, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            entries.put(stopped_after=round(seconds, 1), log=log.read_text()[-2000:])
            return False
    if code:
        entries.put(exit_code=code, log=log.read_text()[-3000:])
    return code == 0
