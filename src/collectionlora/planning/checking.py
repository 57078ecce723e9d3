"""Everything that can fail later, looked at now; loads no base weights into a run and trains nothing."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from collectionlora.adapters.formats import read_teacher
from collectionlora.adapters.roles import target_weights
from collectionlora.backbones import family_of
from collectionlora.collection import PROMPTS, Collection
from collectionlora.effectbench.truths import true_folder
from collectionlora.manifest.template import guess_prompt
from collectionlora.pictures.folders import find_photos
from collectionlora.pictures.pairs import read_pair
from collectionlora.pictures.photos import read_photo
from collectionlora.prompting.writing import read_kept
from collectionlora.runs.growing import open_start
from collectionlora.runs.session import (
    check_references,
    check_resolution,
    check_sharding,
    resolve_settings,
)
from collectionlora.system.errors import UserError
from collectionlora.system.progress import Progress, ignore

MAX_THREADS = 8  # that read photos: each holds a whole one
T = TypeVar("T")
P = ParamSpec("P")


class Findings:
    """All problems found, not only the first."""

    def __init__(self) -> None:
        self._by_text: dict[str, UserError] = {}

    @property
    def problems(self) -> list[UserError]:
        return list(self._by_text.values())

    def add(self, problem: UserError) -> None:
        """Effects may share photos: what is known already is not told again."""
        self._by_text.setdefault(str(problem), problem)

    def attempt(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `work` returns; None, and a problem more, if it refuses."""
        try:
            return work(*args, **kwargs)
        except UserError as error:
            self.add(error)
            return None


def check_collection(folder: Path, progress: Progress = ignore) -> dict[str, Any]:
    """Everything that can be found in a collection before a run.

    Returns:
        `{"ok", "problems": [{"file", "field", "message", "hint"}], "effects": [{"name", **LoraFile.report}],
        "guessed_prompts": [name], "left_out": [{"file", "reason"}]}`
    """
    found, effects, left_out = Findings(), list[dict[str, Any]](), list[dict[str, str]]()
    guessed: list[str] = []
    collection = found.attempt(Collection.load, folder)
    if collection is not None:
        settings = found.attempt(resolve_settings, collection, {})
        if settings is not None:
            found.attempt(check_resolution, collection, settings)
            found.attempt(check_references, collection, settings)
            found.attempt(check_sharding, collection, settings)
            found.attempt(open_start, collection, settings)
        found.attempt(read_kept, collection.folder / PROMPTS)
        left_out = check_photos(collection, found, progress)
        name = collection.manifest.base
        base = found.attempt(base_weights, name)
        for effect in collection.effects:
            found.attempt(true_folder, collection, effect)
            path = found.attempt(collection.teacher_path, effect)
            if path and base is not None:
                reader, without = family_of(name).weight_reader(name), effect.without_text_encoder
                lora = found.attempt(read_teacher, path, base, reader, without)
                if lora:
                    effects.append({"name": effect.name, **lora.report(len(base))})
                    stated = lora.metadata.get("teacher_prompt")
                    if not stated and effect.teacher_prompt == guess_prompt(effect.name, lora.metadata):
                        guessed.append(effect.name)
    problems = [problem.as_dict() for problem in found.problems]
    return {
        "ok": not problems,
        "problems": problems,
        "effects": effects,
        "guessed_prompts": guessed,
        "left_out": left_out,
    }


def check_photos(collection: Collection, found: Findings, progress: Progress) -> list[dict[str, str]]:
    """Read every photo of a collection, and tell the files among them that are left out, with the reason."""
    photos = set(check_general(collection, found))
    folders: set[Path | None] = set(found.attempt(collection.general_folders) or [])
    for effect in collection.effects:
        photos |= set(found.attempt(collection.photo_paths, effect) or [])
        photos |= set(found.attempt(collection.reference_paths, effect) or [])
        folders |= {found.attempt(collection.photos_folder, effect), *collection.pair_folders([effect.name])}
        if collection.pair_folders([effect.name]):
            for pair in found.attempt(collection.pair_paths, effect) or []:
                found.attempt(read_pair, *pair)
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for done, problem in enumerate(pool.map(find_problem, sorted(photos)), 1):
            if problem:
                found.add(problem)
            progress("photos", done, len(photos), {})
    present = sorted(folder for folder in folders if folder and folder.is_dir())
    left_out = {one for folder in present for one in find_photos(folder)[1]}
    return [{"file": str(one.path), "reason": one.reason} for one in sorted(left_out, key=lambda o: o.path)]


def check_general(collection: Collection, found: Findings) -> list[Path]:
    """Look at every line of the general stream; returns its photos."""
    if not collection.has_pairs:
        found.attempt(collection.general_prompts)
        return found.attempt(collection.general_photo_paths) or []
    lines = found.attempt(collection.pair_lines) or []
    pairs = [found.attempt(collection.read_pair, *line) for line in lines]
    return [pair[0] for pair in pairs if pair]


def find_problem(photo: Path) -> UserError | None:
    """What is wrong with a photo, if anything is; of its pixels nothing is kept."""
    try:
        read_photo(photo)
    except UserError as error:
        return error
    return None


def base_weights(base: str) -> dict[str, Tensor]:
    """Weights of the modules that take a LoRA; of a large base names and shapes alone, on the meta device."""
    return target_weights(*family_of(base).empty_network(base))
