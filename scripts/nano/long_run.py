"""Twelve effects in one LoRA, beside its controls, on photographs that nothing was trained on; resumes.

    torchrun --nproc-per-node 2 scripts/nano/long_run.py --data DATA --out DIR [--set section.name=value ...]

Two processes of one thread are faster than one of two; `python scripts/nano/long_run.py` works as well.

Runs the method over all shipped teachers; then, as a control of equal time, teacher matching alone (no
critic) for as many seconds; then judges source, teachers in their many steps, undistilled
teachers in few, and both students; writes sheet.png, report.html and metrics.json into DIR. The adapter is
DIR/collection/runs/distilled/collection.safetensors.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collectionlora import processes
from collectionlora.adapters.roles import TEACHER
from collectionlora.api import distill
from collectionlora.collection import MANIFEST, Collection
from collectionlora.config import Settings, parse_overrides
from collectionlora.data import Photo
from collectionlora.demo import build_collection, shipped_teachers
from collectionlora.effectbench.heldout import Heldout, heldout_photographs
from collectionlora.effectbench.photographs import HELDOUT, TRAIN, load_photograph
from collectionlora.effectbench.report.page import write_results
from collectionlora.effectbench.running import run_bench
from collectionlora.effects.ordinary import load_photographs
from collectionlora.session import resolve_settings
from collectionlora.terminal import joined_processes
from collectionlora.trainer import LOG

DISTILLED, CONTROL = "distilled", "matching"  # names of the runs
STEPS = (8, 4, 2, 1)


def unseen_photographs(data: Path) -> dict[str, Photo]:
    """Whole photographs that neither base, teachers nor students were trained on."""
    debian = heldout_photographs(data / "photographs" / "heldout")
    return debian | {name: load_photograph(name) for name in (*HELDOUT, *TRAIN)}


def matching_overrides(log: Path, settings: Settings) -> dict[str, Any]:
    """Settings of a run that matches teachers for as long as the run of `log` would take undisturbed.

    Medians of seconds for each step: a run that was paused or shared its machine gives the same.
    """
    ends = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]
    seconds = [end - start for start, end in itertools.pairwise([0.0, *ends])]
    matching, distilling = seconds[: settings.match.updates], seconds[settings.match.updates :]
    ratio = statistics.median(distilling) / statistics.median(matching)
    updates = len(matching) + round(len(distilling) * ratio)
    return {"match": {"updates": updates}, "distill": {"student_updates": 0}}


def train_both(
    collection: Collection, overrides: Mapping[str, Mapping[str, Any]], settings: Settings, progress: Any
) -> None:
    """The method, then its control."""
    distill(collection, DISTILLED, overrides, resume=True, progress=progress)
    log = collection.folder / "runs" / DISTILLED / LOG
    matching = matching_overrides(log, settings)
    control = {section: {**overrides.get(section, {}), **values} for section, values in matching.items()}
    distill(collection, CONTROL, {**overrides, **control}, resume=True, progress=progress)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder made by photographs.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judged", type=int, default=32, help="photos for each effect")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    overrides = parse_overrides([f"distill.seed={args.seed}", *args.overrides])
    folder = args.out / "collection"
    photographs = load_photographs(args.data / "photographs" / "train")
    with joined_processes() as progress:
        with processes.main_first():
            if not (folder / MANIFEST).exists():
                build_collection(folder, shipped_teachers(), photographs, args.seed)
        collection = Collection.load(folder)
        settings = resolve_settings(collection, overrides)
        train_both(collection, overrides, settings, progress)
        methods = ["source", TEACHER, *(f"{TEACHER}-{n}" for n in STEPS)]
        methods += [f"{run}-{n}" for run in (DISTILLED, CONTROL) for n in STEPS]
        heldout = Heldout(unseen_photographs(args.data), photographs, args.judged, [args.seed], 2000)
        result = run_bench(collection, settings, methods, heldout, progress)
        if processes.is_main():
            logs = {run: folder / "runs" / run / LOG for run in (DISTILLED, CONTROL)}
            write_results(args.out, result, logs)


if __name__ == "__main__":
    main()
