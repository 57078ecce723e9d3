"""Twelve effects in one LoRA, beside its controls, on photographs that nothing was trained on; resumes.

    torchrun --nproc-per-node 2 scripts/nano/long_run.py --data DATA --out DIR [--set section.name=value ...]

Two processes of one thread are faster than one of two; `python scripts/nano/long_run.py` works as well.

Runs the method over all shipped teachers: the warm start, and from its last state the distillation; then, as
a control of equal time from the same state, more of the warm start (teacher matching, no critic) for as long
as the distillation took. Judges source, teachers in their many steps, undistilled teachers in few, and the
three students; writes sheet.png, report.html and metrics.json into DIR. The adapter is
DIR/collection/runs/distilled/collection.safetensors.
"""

import argparse
import itertools
import json
import shutil
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

WARM, DISTILLED, CONTROL = "warm", "distilled", "matching"  # names of the runs
STEPS = (8, 4, 2, 1)
NUM_GENERAL = 256
# Beside nano's own settings, which are a demo's: the warm start of an hour on two cores, checkpoints by time.
LONG: dict[str, dict[str, Any]] = {
    "targets": {"general": NUM_GENERAL},
    "match": {"updates": 6500},
    "distill": {"student_updates": 100, "checkpoint_every": 250},
}


def unseen_photographs(data: Path) -> dict[str, Photo]:
    """Whole photographs that neither base, teachers nor students were trained on."""
    debian = heldout_photographs(data / "photographs" / "heldout")
    return debian | {name: load_photograph(name) for name in (*HELDOUT, *TRAIN)}


def matching_overrides(log: Path, settings: Settings) -> dict[str, Any]:
    """Settings that match teachers for as long as the run of `log` would take undisturbed.

    Medians of seconds for each step: a run that was paused or shared its machine gives the same.
    """
    ends = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]
    seconds = [end - start for start, end in itertools.pairwise([0.0, *ends])]
    matching, distilling = seconds[: settings.match.updates], seconds[settings.match.updates :]
    ratio = statistics.median(distilling) / statistics.median(matching)
    updates = len(matching) + round(len(distilling) * ratio)
    return {"match": {"updates": updates}, "distill": {"student_updates": 0}}


Layer = Mapping[str, Mapping[str, Any]]


def over(layer: Layer, changes: Layer) -> dict[str, dict[str, Any]]:
    """Settings with those of `changes` in their place."""
    return {name: {**layer.get(name, {}), **changes.get(name, {})} for name in {**layer, **changes}}


def train_all(collection: Collection, overrides: Layer, settings: Settings, progress: Any) -> None:
    """The warm start, and from its last state the distillation and the control."""
    runs = collection.folder / "runs"
    warm = over(overrides, {"distill": {"student_updates": 0}})
    distill(collection, WARM, warm, resume=True, progress=progress)
    with processes.main_first():
        for name in (DISTILLED, CONTROL):
            if not (runs / name).exists():
                shutil.copytree(runs / WARM, runs / name)
    distill(collection, DISTILLED, overrides, resume=True, progress=progress)
    control = over(overrides, matching_overrides(runs / DISTILLED / LOG, settings))
    distill(collection, CONTROL, control, resume=True, progress=progress)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder made by photographs.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judged", type=int, default=24, help="photos for each effect")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    overrides = over(LONG, parse_overrides([f"distill.seed={args.seed}", *args.overrides]))
    folder = args.out / "collection"
    photographs = load_photographs(args.data / "photographs" / "train")
    with joined_processes() as progress:
        with processes.main_first():
            if not (folder / MANIFEST).exists():
                build_collection(folder, shipped_teachers(), photographs, args.seed, NUM_GENERAL)
        collection = Collection.load(folder)
        settings = resolve_settings(collection, overrides)
        train_all(collection, overrides, settings, progress)
        methods = ["source", TEACHER, *(f"{TEACHER}-{n}" for n in STEPS)]
        methods += [f"{run}-{n}" for run in (WARM, DISTILLED, CONTROL) for n in STEPS]
        heldout = Heldout(unseen_photographs(args.data), photographs, args.judged, [args.seed], 1500)
        result = run_bench(collection, settings, methods, heldout, progress)
        if processes.is_main():
            logs = {run: folder / "runs" / run / LOG for run in (DISTILLED, CONTROL)}
            write_results(args.out, result, logs)


if __name__ == "__main__":
    main()
