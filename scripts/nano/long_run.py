"""Twelve effects in one LoRA, beside its controls, on photographs that nothing was trained on; resumes.

    python scripts/nano/long_run.py --data DATA --out DIR [--set section.name=value ...]

Runs the method over all shipped teachers; then, as a control of equal time, teacher matching alone (no
critic) for as many seconds; then judges source, teachers in their many steps, undistilled
teachers in few, and both students; writes sheet.png, report.html and metrics.json into DIR.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from collectionlora.api import distill
from collectionlora.cli import ProgressLine
from collectionlora.collection import MANIFEST, Collection, list_photos
from collectionlora.config import Settings, parse_overrides
from collectionlora.data import read_photo
from collectionlora.demo import build_collection, shipped_teachers
from collectionlora.editing import Editor
from collectionlora.effectbench.bench import compare, draw_cases
from collectionlora.effectbench.classifier import train_classifier
from collectionlora.effectbench.methods import SOURCE, student_method, teacher_method, undistilled_method
from collectionlora.effectbench.photographs import HELDOUT, TRAIN, load_photograph
from collectionlora.effectbench.report import versions, write_results
from collectionlora.effectbench.sheet import draw_sheet
from collectionlora.effects.crops import PhotoPool
from collectionlora.effects.ordinary import load_photographs
from collectionlora.session import Session, resolve_settings
from collectionlora.trainer import LOG

STUDENT, CONTROL = "student", "matching"
STEPS = (8, 4, 2, 1)
CLASSIFIER_STEPS = 2000


def unseen_photographs(data: Path) -> PhotoPool:
    """Whole photographs that neither base, teachers nor students were trained on."""
    debian = [read_photo(path) for path in list_photos(data / "photographs" / "heldout")]
    return PhotoPool([*debian, *(load_photograph(name) for name in (*HELDOUT, *TRAIN))])


def matching_overrides(log: Path, settings: Settings) -> dict[str, Any]:
    """Settings of a run that matches teachers for as many seconds as the run of `log` took in all."""
    seconds = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]
    matching = settings.match.updates
    updates = round(seconds[-1] / (seconds[matching - 1] / matching))
    return {"match": {"updates": updates}, "distill": {"student_updates": 0}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder made by photographs.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judged", type=int, default=32, help="photos for each effect")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began, folder = time.perf_counter(), args.out / "collection"
    photographs = load_photographs(args.data / "photographs" / "train")
    if not (folder / MANIFEST).exists():
        build_collection(folder, shipped_teachers(), photographs, args.seed)
    collection = Collection.load(folder)
    overrides = parse_overrides([f"distill.seed={args.seed}", *args.overrides])
    settings = resolve_settings(collection, overrides)
    names = [e.name for e in collection.effects]

    with ProgressLine() as progress:
        distill(collection, STUDENT, overrides, resume=True, progress=progress)
        log = folder / "runs" / STUDENT / LOG
        control = {**overrides, **matching_overrides(log, settings)}
        control["distill"] = {**overrides["distill"], **control["distill"]}
        distill(collection, CONTROL, control, resume=True, progress=progress)

        session = Session(collection, settings, with_critics=False)
        methods = [SOURCE, teacher_method(session), *(undistilled_method(session, n) for n in STEPS)]
        for run in (STUDENT, CONTROL):
            editor = Editor.load(folder / "runs" / run / collection.result.name)
            methods += [student_method(editor, n, run) for n in STEPS]
        cases, rng = (
            draw_cases(unseen_photographs(args.data), args.judged, args.seed + 1),
            np.random.default_rng(2),
        )
        classifier = train_classifier(names, lambda: photographs.crop(rng), CLASSIFIER_STEPS, args.seed)
        table, pictures = compare(methods, names, cases, classifier, progress)

    metrics = {
        "methods": table,
        "photos": len(cases.photos),
        "effects": names,
        "seeds": [args.seed],
        "seconds": time.perf_counter() - began,
        "versions": versions(),
        "settings": settings.model_dump(mode="json"),
    }
    write_results(args.out, metrics, draw_sheet(cases, pictures), log)


if __name__ == "__main__":
    main()
