"""`bench`: every method on the same held-out photographs, seeds and measures; resumes.

Pictures are kept by method and effect under `bench/pictures`, each file named after all that it depends on,
so that an interrupted bench goes on and a changed adapter is judged anew.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from collectionlora.adapters.recipe import adapter_path, read_recipe
from collectionlora.adapters.roles import STUDENT, TEACHER
from collectionlora.backbones import family_of
from collectionlora.backbones.base import Backbone
from collectionlora.cache import base_identity
from collectionlora.collection import Collection
from collectionlora.config import BenchSettings, Settings, result_settings
from collectionlora.effectbench.baselines import BASELINES, Baselines
from collectionlora.effectbench.bench import (
    GENERAL,
    Cases,
    Method,
    Pictures,
    Strip,
    make,
    make_edits,
)
from collectionlora.effectbench.encodings import Encodings
from collectionlora.effectbench.faces import faces_first
from collectionlora.effectbench.gallery import Result, show
from collectionlora.effectbench.heldout import Heldout
from collectionlora.effectbench.judging import Judge
from collectionlora.effectbench.measuring import gather_meters
from collectionlora.effectbench.methods import SOURCE, student_method, teacher_method, undistilled_method
from collectionlora.effectbench.scoring import score
from collectionlora.effectbench.similarity import check_library
from collectionlora.effectbench.truths import TRUTH, Truths
from collectionlora.pictures.buckets import find_images, gather_images, name_images
from collectionlora.pictures.photos import Photo, to_images
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.prompting.vlm import Vlm
from collectionlora.prompting.writing import find_pairs
from collectionlora.runs.inputs import distillation_inputs
from collectionlora.runs.session import Session
from collectionlora.system import processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint, load_tensors, read_tensors, write_tensors
from collectionlora.system.progress import Progress
from collectionlora.system.shared_files import Kept, carry, make_together
from collectionlora.system.version import __version__

DEFAULT_METHODS = ("source", TEACHER, STUDENT)
DEFAULT_CROPS = 24  # photos of each effect and seed
Timed = tuple[list[Photo], float]  # pictures, and the seconds that each took


class MethodMaker:
    """Methods by their names in metrics.json; what one needs is loaded or trained when it is asked for."""

    def __init__(
        self,
        collection: Collection,
        settings: Settings,
        truths: Truths,
        progress: Progress,
        with_sums: bool = True,
    ):
        self.collection, self.settings, self.truths = collection, settings, truths
        # As they were read: one that is replaced before its pictures are made is not the one they show.
        self.adapters: dict[str, str] = {}
        self.folder = collection.folder / "bench" / "pictures"
        self.session = Session(collection, settings, with_critics=False, with_sums=with_sums)
        self.encodings = Encodings(self.session)
        self.baselines = Baselines(self.session, self.encodings, progress)

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
        role, steps = read_name(self.collection, name)
        if role == TEACHER:
            makers = self.session, self.encodings
            method = undistilled_method(*makers, steps) if steps else teacher_method(*makers)
            files = {self.collection.teacher_path(e) for e in self.collection.effects}
            return replace(method, num_bytes=sum(path.stat().st_size for path in files))
        path = find_adapter(self.collection, name)
        self.adapters[name] = fingerprint(path)
        return student_method(self.session, self.encodings, path, role, steps)

    def path(self, name: str, kind: str, cases: Cases) -> Path:
        """Where a method's pictures of an effect, or of the ordinary edits, are kept."""
        return self.folder / name / f"{kind}-{self.key(name, kind, cases)}.safetensors"

    def strip_path(self, name: str, effect: str, cases: Cases) -> Path:
        """Where its strength dial is kept."""
        return self.folder / name / f"{effect}-strip-{self.key(name, effect, cases)}.safetensors"

    def key(self, name: str, effect: str, cases: Cases) -> str:
        """The fingerprint of all that a method's pictures of an effect depend on."""
        shown = [photo.tobytes() for photo in cases.photos]
        shown += [edit.source.tobytes() + edit.instruction.encode() for edit in cases.edits]
        references = [path for e in self.collection.effects for path in self.collection.reference_paths(e)]
        base = base_identity(self.collection.manifest.base)
        parts: list[Any] = [base, result_settings(self.settings), cases.seeds, *shown, *references]
        if split_steps(name)[0] == TEACHER and effect != GENERAL:
            chosen = self.collection.effect(effect)
            return fingerprint(self.session.teacher_marks[effect], chosen.teacher_prompt, *parts)
        if name == TRUTH and effect != GENERAL:
            return fingerprint(*(photo.tobytes() for photo in self.truths.draw(effect)), *parts)
        if name in BASELINES:
            effects = self.collection.effects
            shares = [(e.teacher_prompt, self.session.prompts[e.name], e.weight) for e in effects]
            return fingerprint(shares, *distillation_inputs(self.collection), *parts)
        if name in (SOURCE.name, TRUTH) or split_steps(name)[0] == TEACHER:
            return fingerprint(*self.session.teacher_marks.values(), *parts)
        return fingerprint(self.adapters[name], *parts)

    def references(self) -> dict[str, list[tuple[Photo, Photo]]]:
        """Image pairs that show what an effect does, by effect, where there are any."""
        found = {}
        for effect in self.collection.effects:
            pairs = find_pairs(self.collection, effect, self.session.backbone, self.settings)
            if pairs:
                photos = pairs.read()
                found[effect.name] = list(zip(photos[0::2], photos[1::2], strict=True))
        return found


def find_adapter(collection: Collection, name: str) -> Path:
    """The file of a student's or a run's method.

    Raises:
        UserError: there is no such method, or no finished adapter.
    """
    if split_steps(name)[0] == STUDENT:
        return adapter_path(collection.folder)
    path = run_adapter(collection, name)
    if not path.exists():
        known = ", ".join((SOURCE.name, TRUTH, TEACHER, "teacher-8", STUDENT, "student-4", *BASELINES))
        hint = f"choose from {known}, or name a finished run"
        raise UserError("", "--methods", f"{name!r} is not a method", hint)
    return path


def trained_methods(names: Sequence[str]) -> list[str]:
    """The methods that are a finished adapter: the student's, and those of runs."""
    others = (SOURCE.name, TRUTH, *BASELINES)
    return [name for name in names if name not in others and split_steps(name)[0] != TEACHER]


def run_adapter(collection: Collection, name: str) -> Path:
    """Where the run of a method leaves its adapter."""
    return collection.folder / "runs" / read_name(collection, name)[0] / collection.result.name


def read_name(collection: Collection, name: str) -> tuple[str, int | None]:
    """A method's role or run, and its number of steps; the number may be a part of a run's name."""
    role, steps = split_steps(name)
    adapter = collection.folder / "runs" / name / collection.result.name
    return (name, None) if role not in (TEACHER, STUDENT) and adapter.exists() else (role, steps)


def split_steps(name: str) -> tuple[str, int | None]:
    """`student-4` to ("student", 4); a name without a number of steps to itself and None."""
    role, _, steps = name.rpartition("-")
    return (role, int(steps)) if role and steps.isdecimal() and int(steps) else (name, None)


def draw(maker: MethodMaker, method: Method, name: str, kind: str, cases: Cases) -> Kept[Timed]:
    """A method's pictures of one effect or of the ordinary edits."""
    make_all = partial(make_edits, method, cases) if kind == GENERAL else partial(make, method, kind, cases)
    path = maker.path(name, kind, cases)
    return Kept(path, partial(load_or_make, path, make_all))


def draw_strip(
    maker: MethodMaker, strip: Strip, name: str, effect: str, cases: Cases, index: int
) -> Kept[Timed]:
    """One photo under an effect, by rising strength."""
    make_strip = partial(strip, effect, cases.photos[index], cases.seeds[index])
    path = maker.strip_path(name, effect, cases)
    return Kept(path, partial(load_or_make, path, make_strip))


def encode_cases(
    maker: MethodMaker, methods: Mapping[str, Method], kinds: Sequence[str], cases: Cases
) -> None:
    """Encode what this process' missing pictures are made from, so that the encoders can go."""
    dial = find_dial(methods)
    for name, method in methods.items():
        for kind in processes.share(kinds):
            made = [maker.path(name, kind, cases)]
            if dial and name == dial[0] and kind != GENERAL:
                made.append(maker.strip_path(name, kind, cases))
            if all(path.exists() for path in made):
                continue
            edits = [(edit.source, edit.instruction) for edit in cases.edits]
            shown = edits if kind == GENERAL else [(photo, "") for photo in cases.photos]
            for photo, instruction in shown:
                for text in method.reads(kind, instruction):
                    maker.encodings.condition(kind, text, to_images([photo]))
    maker.session.backbone.release_encoders()


def load_or_make(path: Path, make_all: Callable[[], list[Photo]]) -> Timed:
    """Pictures from their file, or made and put there."""
    found = read_tensors(path)
    if found is None:
        began = time.perf_counter()
        made = make_all()
        each = f"{(time.perf_counter() - began) / len(made):.5f}"
        pictures = gather_images([torch.from_numpy(photo) for photo in made])
        write_tensors(path, name_images("pictures", pictures), {"seconds": each})
        found = load_tensors(path)  # mapped: pictures of all methods need not fit the memory
    tensors, header = found
    return [picture.numpy() for picture in find_images("pictures", tensors)], float(header["seconds"])


def make_pictures(
    maker: MethodMaker, names: Sequence[str], cases: Cases, progress: Progress
) -> tuple[dict[str, Method], Pictures, dict[str, float]]:
    """The methods, their pictures and their seconds a picture; several processes share the effects."""
    methods: dict[str, Method] = {}
    pictures: Pictures = {}
    seconds: dict[str, float] = {}
    kinds = [*(e.name for e in maker.collection.effects), GENERAL]
    for name in names:
        methods[name] = maker.method(name)
    encode_cases(maker, methods, kinds, cases)
    for index, (name, method) in enumerate(methods.items()):
        drawn = make_together([draw(maker, method, name, kind, cases) for kind in kinds])
        pictures[name] = {kind: made for kind, (made, _) in zip(kinds, drawn, strict=True)}
        seconds[name] = float(np.median([each for _, each in drawn]))
        progress("pictures", index + 1, len(names), {})
    return methods, pictures, seconds


def make_strips(maker: MethodMaker, methods: Mapping[str, Method], cases: Cases) -> dict[str, list[Photo]]:
    """By effect, the strength dial of the first method that has one; several processes share the effects."""
    dial = find_dial(methods)
    if dial is None:
        return {}
    name, strip = dial
    effects = [e.name for e in maker.collection.effects]
    (index,) = faces_first(cases.photos, 1)
    drawn = make_together([draw_strip(maker, strip, name, e, cases, index) for e in effects])
    return {effect: made for effect, (made, _) in zip(effects, drawn, strict=True)}


def find_dial(methods: Mapping[str, Method]) -> tuple[str, Strip] | None:
    """The name and the strength dial of the first method that has one."""
    return next(((name, method.strip) for name, method in methods.items() if method.strip), None)


def run_bench(
    collection: Collection,
    settings: Settings,
    names: Sequence[str],
    heldout: Heldout,
    progress: Progress,
    open_judge: Callable[[Backbone], Vlm] | None = None,
) -> Result:
    """Make all pictures and measure them.

    Args:
        open_judge: makes the judge, if there is one, of the backbone.

    Raises:
        UserError: an unknown method, no finished adapter, a true image that is missing, a model that cannot
            be opened, an extra that is not installed, or a judge that fails.
    """
    began = time.perf_counter()
    check_library(settings.bench)
    trained = trained_methods(names)
    carry([collection.result, *(run_adapter(collection, name) for name in trained)])
    for name in trained:  # a wrong one is known before anything is done
        find_adapter(collection, name)
    sizes = WorkingSizes.of(settings.data, family_of(collection.manifest.base).side_multiple)
    cases = heldout.draw(collection, sizes)
    truths = Truths(collection, cases, heldout.photographs, sizes)
    maker = MethodMaker(collection, settings, truths, progress, bool({*names} & {*BASELINES}))
    methods, pictures, seconds = make_pictures(maker, names, cases, progress)
    strips = make_strips(maker, methods, cases)
    maker.session.release_network()  # a judge may need its room
    maker.encodings.forget()
    vlm = open_judge(maker.session.backbone) if open_judge else None
    # The judge is asked once, and a classifier trained once.
    measured = measure(maker, methods, pictures, heldout, vlm, progress) if processes.is_main() else {}
    facts = processes.from_main(measured)
    for name, row in facts["methods"].items():
        row["seconds_per_image"] = seconds[name]
    metrics = {
        **facts,
        "base": base_facts(maker, trained),
        "photos": len(cases.photos),
        "effects": [e.name for e in collection.effects],
        "seeds": list(heldout.seeds),
        "cases": cases.key,
        "seconds": time.perf_counter() - began,
        "versions": versions(settings.bench),
        "settings": settings.model_dump(mode="json"),
    }
    return Result(metrics, show(cases, truths, pictures), strips)


def base_facts(maker: MethodMaker, trained: Sequence[str]) -> dict[str, Any]:
    """On which base the pictures were made, and on which each adapter was distilled."""
    recipes = {name: read_recipe(find_adapter(maker.collection, name)) for name in trained}
    return {
        "name": maker.collection.manifest.base,
        "dtype": str(maker.session.backbone.computes_in).removeprefix("torch."),
        "quantization": maker.settings.model.quantization,
        "distilled_on": {name: recipe.model.quantization for name, recipe in recipes.items()},
    }


def measure(
    maker: MethodMaker,
    methods: Mapping[str, Method],
    pictures: Pictures,
    heldout: Heldout,
    vlm: Vlm | None,
    progress: Progress,
) -> dict[str, Any]:
    """The `methods` of metrics.json and, beside them, the judges' own quality and what is skipped."""
    settings, cases = maker.settings, maker.truths.cases
    pairs = maker.references()
    facts, meters = gather_meters(maker.truths, heldout, pairs, settings, progress)
    judge = Judge(vlm, maker.collection, cases, pairs) if vlm else None
    if judge:
        meters.append(judge.meter(progress))
    else:
        facts["skipped"]["judge"] = "no model is named: --judge URL --judge-model M, or --judge base"
    table = score(methods, pictures, cases, meters, TEACHER)
    if judge:
        repeated = judge.repeat(pictures, settings.bench.judged_twice, heldout.seeds[0])
        facts["judge"] = {**judge.facts(), "judged_twice": repeated}
        maker.session.backbone.release_encoders()
    return {"methods": table, **facts}


def versions(settings: BenchSettings) -> dict[str, str]:
    """What the numbers depend on."""
    models = ("transformers",) if settings.clip or settings.dino else ()
    packages = {name: metadata.version(name) for name in ("torch", "peft", "numpy", "piq", *models)}
    return {"collectionlora": __version__, "python": platform.python_version(), **packages}
