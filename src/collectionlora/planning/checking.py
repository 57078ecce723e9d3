"""Everything that can fail later, looked at now; loads no base weights into a run and trains nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.roles import target_weights
from collectionlora.backbones import family_of
from collectionlora.collection import PROMPTS, Collection
from collectionlora.pictures.photos import read_photo
from collectionlora.prompting.writing import read_kept
from collectionlora.runs.session import check_references, resolve_settings
from collectionlora.system.errors import UserError

T = TypeVar("T")


def check_collection(folder: Path) -> dict[str, Any]:
    """All problems found, not only the first.

    Returns:
        `{"ok", "problems": [{"file", "field", "message", "hint"}], "effects": [{"name", **LoraFile.report}]}`
    """
    problems: list[UserError] = []

    def attempt(work: Callable[[], T]) -> T | None:
        try:
            return work()
        except UserError as error:
            if str(error) not in map(str, problems):  # effects may share photos
                problems.append(error)
            return None

    effects = []
    collection = attempt(lambda: Collection.load(folder))
    if collection is not None:
        attempt(lambda: check_references(collection, resolve_settings(collection, {})))
        attempt(collection.general_prompts)
        attempt(lambda: read_kept(collection.folder / PROMPTS))
        photos = set(attempt(collection.general_photo_paths) or [])
        base = attempt(lambda: base_weights(collection.manifest.base))
        for effect in collection.effects:
            photos |= set(attempt(lambda e=effect: collection.photo_paths(e)) or [])  # type: ignore[misc]
            photos |= set(attempt(lambda e=effect: collection.reference_paths(e)) or [])  # type: ignore[misc]
            path = attempt(lambda e=effect: collection.teacher_path(e))  # type: ignore[misc]
            if base is None or path is None:
                continue
            lora = attempt(lambda p=path: read_lora(p, base))  # type: ignore[misc]
            if lora:
                effects.append({"name": effect.name, **lora.report(len(base))})
        for photo in sorted(photos):
            attempt(lambda p=photo: read_photo(p))  # type: ignore[misc]
    return {"ok": not problems, "problems": [p.as_dict() for p in problems], "effects": effects}


def base_weights(base: str) -> dict[str, Tensor]:
    """Weights of the modules that take a LoRA; of a large base names and shapes alone, on the meta device."""
    return target_weights(*family_of(base).empty_network(base))
