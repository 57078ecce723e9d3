"""What is measured on a GPU, part by part, the most valuable first; gpu.json is whole after each entry.

    scripts/gpu/run.sh [--out FOLDER] [--tiny] [--parts NAME ...]

Each part is a process of its own with seconds of its own: what fails or hangs in one is written down and does
not stop the next. With --tiny all of them run here, over small networks on the CPU.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from entries import Entries
from parts import PARTS, SECONDS, run_apart, run_here

MAX_SECONDS, MIN_SECONDS = 530, 10  # of all parts together, and for one to be worth its start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-out")))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=MAX_SECONDS, help="of all parts together")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    result = args.out / "gpu.json"
    if args.part:
        sys.exit(not run_here(args.part, False, Entries(result, args.part)))
    # The logs stay elsewhere: their ends are in the entries, and the result is one file to bring home.
    with TemporaryDirectory() as logs:
        well = measure(args, result, Path(logs))
    sys.exit(not well)


def measure(args: argparse.Namespace, result: Path, logs: Path) -> bool:
    """The parts one after the other, each with its log in `logs`; whether all of them went well."""
    end, well = time.monotonic() + args.seconds, True
    for name in args.parts:
        entries, seconds = Entries(result, name), min(SECONDS[name], end - time.monotonic())
        command = [sys.executable, __file__, "--part", name, "--out", str(args.out)]
        if args.tiny:
            well &= run_here(name, True, entries)
        elif seconds < MIN_SECONDS:
            entries.put(left_out=f"{max(0, round(seconds))} seconds were left")
        else:
            well &= run_apart(command, entries, logs / f"{name}.log", seconds)
    return well


if __name__ == "__main__":
    main()
