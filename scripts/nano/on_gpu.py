"""Base, teachers and student over the nano base, one after the other, each with seconds of its own.

The package is copied, and the copy gets the new base and its teachers in place of those that ship: so every
other script runs as it is. What was made when a part's seconds are over is used by the next.
"""

import argparse
import json
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from entries import Entries
from parts import run_apart

ROOT = Path(__file__).parents[2]
IN_A_FILE = 30  # teachers, of half a megabyte each
MIN_TEACHERS = 2


@dataclass(frozen=True)
class Sizes:
    """How much of everything, as options of the scripts; seconds are of a whole part with its start."""

    effects: int
    workers: int
    threads: int  # of the student's part, whose classifier and truths are made on the CPU
    seconds: dict[str, int]
    base: tuple[str, ...]
    teacher: tuple[str, ...]
    student: tuple[str, ...]


def settings(**values: Any) -> tuple[str, ...]:
    """`--set section.name=value` of `section__name`."""
    assigned = [(name.replace("__", "."), value) for name, value in values.items()]
    return tuple(part for name, value in assigned for part in ("--set", f"{name}={value}"))


WHOLE = Sizes(
    effects=50,
    workers=12,
    threads=8,
    seconds={"base": 130, "teachers": 160, "student": 235},
    base=("--time=85", "--steps=1000000", "--largest=256", "--pixels=786432", "--num=8", "--side=128"),
    teacher=("--steps=300", "--batch=12", "--judged=12"),
    student=(
        *("--matching=25", "--distilling=1", "--photos=48", "--judged=8", "--classifier-steps=400"),
        *settings(targets__steps=10, match__batch_size=32, distill__batch_size=16, log__tracker="none"),
        *settings(log__preview_every=100_000),
    ),
)
TINY = Sizes(
    effects=2,
    workers=1,
    threads=1,
    seconds={"base": 200, "teachers": 200, "student": 200},
    base=("--steps=2", "--largest=64", "--pixels=4096", "--num=1", "--sample-steps=1"),
    teacher=("--steps=1", "--batch=1", "--pairs=1", "--judged=1", "--sample-steps=1"),
    student=(
        *("--matching=1", "--distilling=1", "--photos=2", "--judged=1", "--classifier-steps=1"),
        *settings(targets__steps=1, targets__general=2, match__batch_size=1, distill__batch_size=1),
        *settings(distill__student_update_every=1, log__tracker="none"),
    ),
)


class Work:
    """A copy of the package in `folder`, and commands over it."""

    def __init__(self, args: argparse.Namespace, sizes: Sizes, folder: Path):
        self.data, self.out, self.sizes, self.folder = args.data, args.out, sizes, folder
        self.weights = folder / "src" / "collectionlora" / "weights"
        shutil.copytree(ROOT / "src" / "collectionlora", folder / "src" / "collectionlora")
        os.environ["PYTHONPATH"] = f"{folder / 'src'}:{os.environ['PYTHONPATH']}"
        self.end = 0.0

    def begin(self, part: str) -> Entries:
        self.end = time.monotonic() + self.sizes.seconds[part]
        return Entries(self.out / "on_gpu.json", part)

    def run(self, script: str, entries: Entries, options: Sequence[str], name: str = "") -> bool:
        """Run a script of this folder until its part's seconds are over; whether it ended well."""
        command = [sys.executable, str(ROOT / "scripts" / "nano" / script), *options]
        log = self.folder / f"{entries.part}{name}.log"
        return run_apart(command, entries, log, max(1.0, self.end - time.monotonic()))


def make_base(work: Work) -> None:
    """From the shipped weights, at mixed sizes."""
    entries, folder = work.begin("base"), work.folder / "base"
    common = ["--data", str(work.data), "--folder", str(folder)]
    start = str(work.weights / "nano.safetensors")
    rates = (
        "--adam-rate=1e-3",
        "--muon-rate=1e-2",
        "--threads=4",
        "--save-every=200",
        "--evaluate-every=1000000000",
    )
    work.run("pretrain.py", entries, [*common, "--start", start, *rates, *work.sizes.base])
    exported = work.out / "base.safetensors"
    if (folder / "state.safetensors").exists():
        work.run("pretrain.py", entries, [*common, "--export", str(exported)])
    if exported.exists():
        shutil.copyfile(exported, start)
    for name in ("log.jsonl", "heldout.jsonl"):
        if (folder / name).exists():
            last = (folder / name).read_text().splitlines()[-1]
            entries.put(**{name.partition(".")[0]: json.loads(last)})
    entries.put(made=exported.exists())


def make_teachers(work: Work) -> int:
    """By several processes on one device; returns how many passed."""
    entries, folder = work.begin("teachers"), work.folder / "teachers"
    shipped = sorted((work.weights / "teachers").glob("*.safetensors"))
    names = [path.stem for path in shipped[: work.sizes.effects]]
    common = ["--data", str(work.data), "--out", str(folder), *work.sizes.teacher, "--effects"]
    shares = [names[index :: work.sizes.workers] for index in range(work.sizes.workers)]

    def teach(index: int) -> bool:
        return work.run("teachers.py", entries, [*common, *shares[index]], f"-{index}")

    with ThreadPoolExecutor(work.sizes.workers) as pool:
        list(pool.map(teach, range(work.sizes.workers)))
    log = folder / "teachers.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    entries.put(asked=names, rows=[{k: v for k, v in row.items() if k != "settings"} for row in rows])
    made = sorted(folder.glob("*.safetensors"))
    keep_teachers(work, made)
    entries.put(passed=len(made))
    return len(made)


def keep_teachers(work: Work, made: Sequence[Path]) -> None:
    """Pack what was made; in the copy of the package it stands for what ships."""
    for number, first in enumerate(range(0, len(made), IN_A_FILE), 1):
        with tarfile.open(work.out / f"teachers-{number}.tar", "w") as tar:
            for path in made[first : first + IN_A_FILE]:
                tar.add(path, path.name)
    if len(made) < MIN_TEACHERS:
        return
    shutil.rmtree(work.weights / "teachers")
    (work.weights / "teachers").mkdir()
    for path in made:
        shutil.copyfile(path, work.weights / "teachers" / path.name)


def make_student(work: Work, number: int) -> None:
    """One LoRA of all that passed, or of those that ship, beside its teachers."""
    entries, folder = work.begin("student"), work.folder / "student"
    os.environ["OMP_NUM_THREADS"] = str(work.sizes.threads)
    number = number if number >= MIN_TEACHERS else work.sizes.effects
    options = ["scaling", "--data", str(work.data), "--out", str(folder), "--sizes", str(number)]
    well = work.run("table.py", entries, [*options, *work.sizes.student])
    run = f"{number}-effects"
    wanted = {
        "student.safetensors": folder / "collection" / "runs" / run / "collection.safetensors",
        "sheet.png": folder / run / "sheet.png",
        "metrics.json": folder / run / "metrics.json",
    }
    for name, path in wanted.items():
        if path.exists():
            shutil.copyfile(path, work.out / name)
    entries.put(effects=number, ended=well, made=[name for name, path in wanted.items() if path.exists()])
    if (work.out / "metrics.json").exists():
        methods = json.loads((work.out / "metrics.json").read_text())["methods"]
        keys = ("nfe", "psnr", "concept_accuracy", "general_psnr")
        entries.put(methods={name: {k: row.get(k) for k in keys} for name, row in methods.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder made by photographs.py")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "on-gpu")))
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        work = Work(args, TINY if args.tiny else WHOLE, Path(folder))
        make_base(work)
        make_student(work, make_teachers(work))


if __name__ == "__main__":
    main()
