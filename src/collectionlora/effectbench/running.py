"""`bench`: every method on the same held-out photographs, seeds and measures; resumes.

Pictures are kept by method and effect under `bench/pictures`, each file named after all that it depends on,
so that an interrupted bench goes on and a changed adapter is judged anew.
"""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from collectionlora import __version__
from collectionlora.adapters.recipe import adapter_path
from collectionlora.adapters.roles import STUDENT, TEACHER
from collectionlora.collection import Collection
from collectionlora.config import BenchSettings, Settings, VlmSettings
from collectionlora.data import Photo, read_photo
from collectionlora.editing import Editor
from collectionlora.effectbench.baselines import BASELINES, Baselines, Progress
from collectionlora.effectbench.bench import (
    GENERAL,
    Cases,
    Method,
    Pictures,
    draw_crops,
    draw_whole,
    join_cases,
    make,
    make_edits,
)
from collectionlora.effectbench.classifier import ConceptClassifier, load_or_train, probabilities
from collectionlora.effectbench.gallery import Result, show
from collectionlora.effectbench.methods import SOURCE, student_method, teacher_method, undistilled_method
from collectionlora.effectbench.photographs import HELDOUT, load_photograph
from collectionlora.effectbench.scoring import Meter, average, concept_meter, score, truth_meter
from collectionlora.effectbench.similarity import missing_models, similarity_meters
from collectionlora.effectbench.truths import Truths, procedural_truth, relative_names
from collectionlora.effects.crops import PhotoPool
from collectionlora.errors import UserError
from collectionlora.files import write_tensors
from collectionlora.prompt_writing import find_pairs
from collectionlora.session import Session
from collectionlora.target_making import fingerprint

DEFAULT_METHODS = ("source", TEACHER, STUDENT)
TRUTH = "truth"
CLASSIFIER_STEPS = 800


@dataclass(frozen=True)
class Heldout:
    """What a collection is judged on.

    Attributes:
        photographs: by name; nothing was trained on them.
        others: photographs to train the classifier on.
        num_photos: photos of each effect and seed.
    """

    photographs: Mapping[str, Photo]
    others: PhotoPool
    num_photos: int
    seeds: Sequence[int]
    classifier_steps: int = CLASSIFIER_STEPS

    def draw(self, collection: Collection, side: int) -> Cases:
        """Random crops where all truths are procedural, the middles of whole photographs otherwise.

        Raises:
            UserError: there are fewer photographs than are asked for.
        """
        if all(procedural_truth(effect) for effect in collection.effects):
            pool = PhotoPool(list(self.photographs.values()))
            return join_cases([draw_crops(pool, self.num_photos, seed, side) for seed in self.seeds])
        return join_cases([draw_whole(self.photographs, self.num_photos, seed, side) for seed in self.seeds])


def heldout_photographs(folder: Path | None) -> dict[str, Photo]:
    """The photographs of a folder, by default three that ship inside scikit-image and scikit-learn."""
    if folder is None:
        return {name: load_photograph(name) for name in HELDOUT}
    return {name: read_photo(path) for name, path in relative_names(folder).items()}


class MethodMaker:
    """Methods by their names in metrics.json; what one needs is loaded or trained when it is asked for."""

    def __init__(self, collection: Collection, settings: Settings, truths: Truths, progress: Progress):
        self.collection, self.settings, self.truths = collection, settings, truths
        self.session = Session(collection, settings, with_critics=False, with_sums=True)
        self.baselines = Baselines(self.session, progress)

    def method(self, name: str) -> Method:
        """`source`, `truth`, `teacher`, `teacher-8`, `student`, `student-4`, RUN, RUN-4, a baseline.

        A baseline is one of `BASELINES`; RUN is a folder below `runs/` with an adapter of its own.

        Raises:
            UserError: there is no such method, or no finished adapter.
        """
        if name == SOURCE.name:
            return SOURCE
        if name == TRUTH:
            return self.truths.method([e.name for e in self.collection.effects])
        if name in BASELINES:
            return self.baselines.method(name)
        role, steps = split_steps(name)
        if role == TEACHER:
            method = undistilled_method(self.session, steps) if steps else teacher_method(self.session)
            files = {self.collection.teacher_path(e) for e in self.collection.effects}
            return replace(method, num_bytes=sum(path.stat().st_size for path in files))
        path = self.adapter(name)
        editor = Editor.load(path)
        method = student_method(editor, steps or editor.recipe.steps, role)
        return replace(method, num_bytes=path.stat().st_size)

    def adapter(self, name: str) -> Path:
        """The file of a student's or a run's method."""
        role, _ = split_steps(name)
        if role == STUDENT:
            return adapter_path(self.collection.folder)
        path = self.collection.folder / "runs" / role / self.collection.result.name
        if not path.exists():
            known = ", ".join((SOURCE.name, TRUTH, TEACHER, "teacher-8", STUDENT, "student-4", *BASELINES))
            mend = f"choose from {known}, or name a finished run"
            raise UserError("", "--methods", f"{name!r} is no method", mend)
        return path

    def key(self, name: str, effect: str, cases: Cases) -> str:
        """The fingerprint of all that a method's pictures of an effect depend on."""
        shown = [photo.tobytes() for photo in cases.photos]
        shown += [edit.source.tobytes() + edit.instruction.encode() for edit in cases.edits]
        drawing = self.settings.model_copy(update={"bench": BenchSettings(), "vlm": VlmSettings()})
        parts: list[Any] = [drawing, cases.seeds, *shown]
        if split_steps(name)[0] == TEACHER and effect != GENERAL:
            chosen = self.collection.effect(effect)
            return fingerprint(self.collection.teacher_path(chosen), chosen.teacher_prompt, *parts)
        if name == TRUTH and effect != GENERAL:
            return fingerprint(*(photo.tobytes() for photo in self.truths.draw(effect)), *parts)
        if name in (SOURCE.name, TRUTH, *BASELINES) or split_steps(name)[0] == TEACHER:
            return fingerprint(*(self.collection.teacher_path(e) for e in self.collection.effects), *parts)
        return fingerprint(self.adapter(name), *parts)

    def references(self) -> dict[str, list[tuple[Photo, Photo]]]:
        """Image pairs that show what an effect does, by effect, where there are any."""
        found = {}
        for effect in self.collection.effects:
            pairs = find_pairs(self.collection, effect, self.session.backbone, self.settings)
            if pairs:
                photos = pairs.read()
                found[effect.name] = list(zip(photos[0::2], photos[1::2], strict=True))
        return found


def skipped(truths: Truths, references: Mapping[str, Any], settings: BenchSettings) -> dict[str, str]:
    """What is not measured, by name, and why."""
    effects = [e.name for e in truths.collection.effects]
    unknown, alone = (
        [e for e in effects if not known(e)] for known in (truths.known, references.__contains__)
    )
    reasons = missing_models(settings)
    if unknown:
        reasons["truth"] = f"not known of {', '.join(unknown)}"
    if alone and not {"clip", "dino"} <= reasons.keys():
        reasons["reference images"] = f"no image pairs of {', '.join(alone)}: fill pairs/, or make targets"
    return reasons


def split_steps(name: str) -> tuple[str, int | None]:
    """`student-4` to ("student", 4); a name without a number to itself and None."""
    role, _, steps = name.rpartition("-")
    return (role, int(steps)) if role and steps.isdecimal() else (name, None)


def make_pictures(
    maker: MethodMaker, names: Sequence[str], cases: Cases, progress: Progress
) -> tuple[dict[str, Method], Pictures, dict[str, float]]:
    """The methods, their pictures from `bench/pictures` where they are there, and their seconds a picture."""
    methods: dict[str, Method] = {}
    pictures: Pictures = {}
    seconds: dict[str, float] = {}
    kinds = [*(e.name for e in maker.collection.effects), GENERAL]
    for name in names:
        method = methods[name] = maker.method(name)
        pictures[name], spent = {}, []
        for index, kind in enumerate(kinds):
            path = maker.collection.folder / "bench" / "pictures" / name
            path /= f"{kind}-{maker.key(name, kind, cases)}.safetensors"
            if not path.exists():
                began = time.perf_counter()
                made = make_edits(method, cases) if kind == GENERAL else make(method, kind, cases)
                each = f"{(time.perf_counter() - began) / len(made):.5f}"
                write_tensors(path, {"pictures": torch.from_numpy(np.stack(made))}, {"seconds": each})
            with safe_open(path, framework="np") as file:
                pictures[name][kind] = list(file.get_tensor("pictures"))
                spent.append(float(file.metadata()["seconds"]))
            progress(f"pictures {name}", index + 1, len(kinds), {})
        seconds[name] = float(np.median(spent))
    return methods, pictures, seconds


def classifier_facts(classifier: ConceptClassifier, truths: Truths) -> dict[str, Any]:
    """What the classifier knows, and how often it is right on true effects of the judged photos.

    `untouched_accuracy` is how often it answers "none" to a photo that nothing was done to.
    """
    photos = truths.cases.photos
    columns = {}
    for index, effect in enumerate(classifier.effects):
        shown = probabilities(classifier, photos, truths.draw(effect)).argmax(1).numpy()
        columns[effect] = (shown == index).astype(float)
    untouched = probabilities(classifier, photos, photos).argmax(1).numpy() == len(classifier.effects)
    both = average(
        {"accuracy": np.mean(list(columns.values()), axis=0), "untouched_accuracy": untouched * 1.0}
    )
    return {"classes": [*classifier.effects, "none"], **both}


def run_bench(
    collection: Collection, settings: Settings, names: Sequence[str], heldout: Heldout, progress: Progress
) -> Result:
    """Make all pictures and measure them.

    Raises:
        UserError: an unknown method, no finished adapter, or a true image that is missing.
    """
    began = time.perf_counter()
    cases = heldout.draw(collection, settings.data.resolution)
    truths = Truths(collection, cases)
    maker = MethodMaker(collection, settings, truths, progress)
    for name in names:
        maker.key(name, GENERAL, cases)  # a wrong name is known before the work of the others is done
    methods, pictures, seconds = make_pictures(maker, names, cases, progress)
    references = maker.references()
    facts: dict[str, Any] = {"skipped": skipped(truths, references, settings.bench)}
    meters: list[Meter] = [truth_meter(truths)]
    if truths.procedural:
        effects, pool = truths.procedural, heldout.others
        steps, seed = heldout.classifier_steps, heldout.seeds[0]
        classifier = load_or_train(collection.folder / "bench", effects, pool, steps, seed)
        meters.append(concept_meter(classifier, cases))
        facts["classifier"] = classifier_facts(classifier, truths)
    prompts = {e.name: e.teacher_prompt for e in collection.effects}
    edited = {effect: [target for _, target in pairs] for effect, pairs in references.items()}
    meters += similarity_meters(settings.bench, cases, edited, prompts)
    table = score(methods, pictures, cases, meters, TEACHER)
    for name, row in table.items():
        row["seconds_per_image"] = seconds[name]
    metrics = {
        "methods": table,
        **facts,
        "photos": len(cases.photos),
        "effects": [e.name for e in collection.effects],
        "seeds": list(heldout.seeds),
        "cases": fingerprint(*(photo.tobytes() for photo in cases.photos), cases.seeds),
        "seconds": time.perf_counter() - began,
        "versions": versions(),
        "settings": settings.model_dump(mode="json"),
    }
    return Result(metrics, show(cases, truths, pictures))


def versions() -> dict[str, str]:
    """What the numbers depend on."""
    packages = {name: metadata.version(name) for name in ("torch", "peft", "numpy", "piq")}
    return {"collectionlora": __version__, "python": platform.python_version(), **packages}
