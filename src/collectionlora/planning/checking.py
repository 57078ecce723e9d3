"""Everything that can fail later, looked at now; loads no base weights into a run and trains nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from collectionlora.adapters.formats import read_teacher
from collectionlora.adapters.roles import target_weights
from collectionlora.backbones import family_of
from collectionlora.collection import PROMPTS, Collection
from collectionlora.pictures.folders import find_photos
from collectionlora.pictures.pairs import read_pair
from collectionlora.pictures.photos import read_photo
from collectionlora.prompting.writing import read_kept
from collectionlora.runs.session import check_references, resolve_settings
from collectionlora.system.errors import UserError

T = TypeVar("T")
P = ParamSpec("P")


class Findings:
    """All problems found, not only the first."""

    def __init__(self) -> None:
        self.problems: list[UserError] = []

    def attempt(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `work` returns; None, and a problem more, if it refuses."""
        try:
            return work(*args, **kwargs)
        except UserError as error:
            if str(error) not in map(str, self.problems):  # effects may share photos
                self.problems.append(error)
            return None


def check_collection(folder: Path) -> dict[str, Any]:
    """Everything that can be found in a collection before a run.

    Returns:
        `{"ok", "problems": [{"file", "field", "message", "hint"}], "effects": [{"name", **LoraFile.report}],
        "left_out": [{"file", "reason"}]}`
    """
    found, effects, left_out = Findings(), list[dict[str, Any]](), list[dict[str, str]]()
    collection = found.attempt(Collection.load, folder)
    if collection is not None:
        found.attempt(lambda: check_references(collection, resolve_settings(collection, {})))
        found.attempt(collection.general_prompts)
        found.attempt(read_kept, collection.folder / PROMPTS)
        left_out = check_photos(collection, found)
        name = collection.manifest.base
        base = found.attempt(base_weights, name)
        for effect in collection.effects:
            path = found.attempt(collection.teacher_path, effect)
            if path and base is not None:
                lora = found.attempt(read_teacher, path, base, family_of(name).weight_reader(name))
                if lora:
                    effects.append({"name": effect.name, **lora.report(len(base))})
    problems = [problem.as_dict() for problem in found.problems]
    return {"ok": not problems, "problems": problems, "effects": effects, "left_out": left_out}


def check_photos(collection: Collection, found: Findings) -> list[dict[str, str]]:
    """Read every photo of a collection, and tell the files among them that are left out, with the reason."""
    photos = set(found.attempt(collection.general_photo_paths) or [])
    folders = {found.attempt(collection.general_folder)}
    for effect in collection.effects:
        photos |= set(found.attempt(collection.photo_paths, effect) or [])
        photos |= set(found.attempt(collection.reference_paths, effect) or [])
        folders |= {found.attempt(collection.photos_folder, effect), *collection.pair_folders([effect.name])}
        if collection.pair_folders([effect.name]):
            for pair in found.attempt(collection.pair_paths, effect) or []:
                found.attempt(read_pair, *pair)
    for photo in sorted(photos):
        found.attempt(read_photo, photo)
    present = sorted(folder for folder in folders if folder and folder.is_dir())
    left_out = {one for folder in present for one in find_photos(folder)[1]}
    return [{"file": str(one.path), "reason": one.reason} for one in sorted(left_out, key=lambda o: o.path)]


def base_weights(base: str) -> dict[str, Tensor]:
    """Weights of the modules that take a LoRA; of a large base names and shapes alone, on the meta device."""
    return target_weights(*family_of(base).empty_network(base))
