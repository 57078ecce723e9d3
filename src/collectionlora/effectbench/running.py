"""`bench`: every method on the same held-out photographs, seeds and measures; resumes.

Pictures are kept by method and effect under `bench/pictures`, each file named after all that it depends on,
so that an interrupted bench goes on and a changed adapter is judged anew.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from collectionlora.adapters.recipe import adapter_path
from collectionlora.adapters.roles import STUDENT, TEACHER
from collectionlora.collection import MANIFEST, Collection, list_photos
from collectionlora.config import Settings
from collectionlora.data import Photo, read_photo
from collectionlora.editing import Editor
from collectionlora.effectbench.baselines import BASELINES, Baselines, Progress
from collectionlora.effectbench.bench import (
    GENERAL,
    Cases,
    Method,
    Pictures,
    draw_cases,
    judge,
    make,
    make_edits,
)
from collectionlora.effectbench.classifier import train_classifier
from collectionlora.effectbench.methods import SOURCE, student_method, teacher_method, undistilled_method
from collectionlora.effectbench.photographs import HELDOUT, load_photograph
from collectionlora.effectbench.report import versions
from collectionlora.effectbench.sheet import draw_sheet
from collectionlora.effects import EFFECTS
from collectionlora.effects.crops import PhotoPool
from collectionlora.errors import UserError
from collectionlora.files import write_tensors
from collectionlora.session import Session
from collectionlora.target_making import fingerprint

DEFAULT_METHODS = ("source", TEACHER, STUDENT)
CLASSIFIER_STEPS = 800


def heldout_photographs(folder: Path | None) -> PhotoPool:
    """The photographs of a folder, by default three that ship inside scikit-image and scikit-learn."""
    if folder is None:
        return PhotoPool([load_photograph(name) for name in HELDOUT])
    return PhotoPool([read_photo(path) for path in list_photos(folder)])


def join_cases(photographs: PhotoPool, num_photos: int, seeds: Sequence[int]) -> Cases:
    """The cases of several seeds, one after the other."""
    drawn = [draw_cases(photographs, num_photos, seed) for seed in seeds]
    return Cases(
        [photo for cases in drawn for photo in cases.photos],
        [seed for cases in drawn for seed in cases.seeds],
        [edit for cases in drawn for edit in cases.edits],
    )


class MethodMaker:
    """Methods by their names in metrics.json; what one needs is loaded or trained when it is asked for."""

    def __init__(self, collection: Collection, settings: Settings, progress: Progress):
        self.collection, self.settings = collection, settings
        self.session = Session(collection, settings, with_critics=False, with_sums=True)
        self.baselines = Baselines(self.session, progress)

    def method(self, name: str) -> Method:
        """`source`, `teacher`, `teacher-8`, `student`, `student-4`, RUN, RUN-4, or one of `BASELINES`.

        RUN is a folder below `runs/` with an adapter of its own.

        Raises:
            UserError: there is no such method, or no finished adapter.
        """
        if name == SOURCE.name:
            return SOURCE
        if name in BASELINES:
            return self.baselines.method(name)
        if name == TEACHER:
            return teacher_method(self.session)
        role, steps = split_steps(name)
        if role == TEACHER and steps:
            return undistilled_method(self.session, steps)
        editor = Editor.load(self.adapter(name))
        return student_method(editor, steps or editor.recipe.steps, role)

    def adapter(self, name: str) -> Path:
        """The file of a student's or a run's method."""
        role, _ = split_steps(name)
        if role == STUDENT:
            return adapter_path(self.collection.folder)
        path = self.collection.folder / "runs" / role / self.collection.result.name
        if not path.exists():
            known = ", ".join((SOURCE.name, TEACHER, "teacher-8", STUDENT, "student-4", *BASELINES))
            mend = f"choose from {known}, or name a finished run"
            raise UserError("", "--methods", f"{name!r} is no method", mend)
        return path

    def key(self, name: str, effect: str, cases: Cases) -> str:
        """The fingerprint of all that a method's pictures of an effect depend on."""
        shown = [photo.tobytes() for photo in cases.photos]
        shown += [edit.source.tobytes() + edit.instruction.encode() for edit in cases.edits]
        parts: list[Any] = [self.settings, cases.seeds, *shown]
        if split_steps(name)[0] == TEACHER and effect != GENERAL:
            chosen = self.collection.effect(effect)
            return fingerprint(self.collection.teacher_path(chosen), chosen.teacher_prompt, *parts)
        if name == SOURCE.name or name in BASELINES or split_steps(name)[0] == TEACHER:
            return fingerprint(*(self.collection.teacher_path(e) for e in self.collection.effects), *parts)
        return fingerprint(self.adapter(name), *parts)


def split_steps(name: str) -> tuple[str, int | None]:
    """`student-4` to ("student", 4); a name without a number to itself and None."""
    role, _, steps = name.rpartition("-")
    return (role, int(steps)) if role and steps.isdecimal() else (name, None)


def make_pictures(
    maker: MethodMaker, names: Sequence[str], cases: Cases, progress: Progress
) -> tuple[dict[str, Method], Pictures]:
    """The methods, and their pictures of all effects, from `bench/pictures` where they are there."""
    methods: dict[str, Method] = {}
    pictures: Pictures = {}
    kinds = [*(e.name for e in maker.collection.effects), GENERAL]
    for name in names:
        method = methods[name] = maker.method(name)
        pictures[name] = {}
        for index, kind in enumerate(kinds):
            path = maker.collection.folder / "bench" / "pictures" / name
            path /= f"{kind}-{maker.key(name, kind, cases)}.safetensors"
            if not path.exists():
                made = make_edits(method, cases) if kind == GENERAL else make(method, kind, cases)
                write_tensors(path, {"pictures": torch.from_numpy(np.stack(made))}, {})
            pictures[name][kind] = list(load_file(path)["pictures"].numpy())
            progress(f"pictures {name}", index + 1, len(kinds), {})
    return methods, pictures


def run_bench(
    collection: Collection,
    settings: Settings,
    names: Sequence[str],
    photographs: PhotoPool,
    others: PhotoPool,
    num_photos: int,
    seeds: Sequence[int],
    classifier_steps: int,
    progress: Progress,
) -> tuple[dict[str, Any], Photo]:
    """The content of metrics.json, and the contact sheet.

    Args:
        photographs: what is judged on.
        others: photographs for the classifier, none of them judged.
        num_photos: crops for each effect and seed.

    Raises:
        UserError: an effect without a known truth, an unknown method, or no finished adapter.
    """
    began = time.perf_counter()
    effects = [e.name for e in collection.effects]
    for name in effects:
        if name not in EFFECTS:
            mend = "take it out; only procedural effects can be judged without a judge model"
            raise UserError(collection.folder / MANIFEST, name, "has no known truth", mend)
    cases = join_cases(photographs, num_photos, seeds)
    methods, pictures = make_pictures(MethodMaker(collection, settings, progress), names, cases, progress)
    rng = np.random.default_rng(seeds[0])
    classifier = train_classifier(effects, lambda: others.crop(rng), classifier_steps, seeds[0])
    metrics = {
        "methods": judge(methods, pictures, cases, classifier),
        "photos": len(cases.photos),
        "effects": effects,
        "seeds": list(seeds),
        "seconds": time.perf_counter() - began,
        "versions": versions(),
        "settings": settings.model_dump(mode="json"),
    }
    return metrics, draw_sheet(cases, pictures)
