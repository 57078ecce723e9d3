"""Everything that can fail later, looked at now; loads no base weights into a run and trains nothing."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from collectionlora.adapters.formats import LoraFile, read_lora
from collectionlora.adapters.roles import STUDENT, Roles
from collectionlora.backbones import empty_network
from collectionlora.collection import Collection
from collectionlora.data import read_photo
from collectionlora.errors import UserError
from collectionlora.session import resolve_settings

T = TypeVar("T")


def check_collection(folder: Path) -> dict[str, Any]:
    """All problems found, not only the first.

    Returns:
        `{"ok", "problems": [{"file", "field", "message", "mend"}], "effects": [{"name", "rank", "modules"}]}`
    """
    problems: list[UserError] = []

    def attempt(work: Callable[[], T]) -> T | None:
        try:
            return work()
        except UserError as error:
            problems.append(error)
            return None

    effects = []
    collection = attempt(lambda: Collection.load(folder))
    if collection is not None:
        attempt(lambda: resolve_settings(collection, {}))
        attempt(collection.general_prompts)
        photos = set(attempt(collection.general_photo_paths) or [])
        fits = attempt(lambda: lora_check(collection.manifest.base))
        for effect in collection.effects:
            photos |= set(attempt(lambda e=effect: collection.photo_paths(e)) or [])  # type: ignore[misc]
            path = attempt(lambda e=effect: collection.teacher_path(e))  # type: ignore[misc]
            lora = attempt(lambda p=path: read_lora(p)) if path else None  # type: ignore[misc]
            if lora and path and fits and attempt(lambda p=path, f=lora: fits(p, f)) is not None:  # type: ignore[misc]
                effects.append({"name": effect.name, "rank": lora.rank, "modules": len(lora.weights)})
        for photo in sorted(photos):
            attempt(lambda p=photo: read_photo(p))  # type: ignore[misc]
    return {"ok": not problems, "problems": [p.as_dict() for p in problems], "effects": effects}


def lora_check(base: str) -> Callable[[Path, LoraFile], bool]:
    """A function that raises UserError unless a LoRA fits the base's modules and shapes; loads no weights."""

    @cache
    def empty_roles(rank: int) -> Roles:
        network, lora_targets = empty_network(base)
        with torch.device("meta"):
            return Roles(network, lora_targets, {STUDENT: rank})

    def fits(path: Path, lora: LoraFile) -> bool:
        roles = empty_roles(lora.rank)
        try:
            roles.load(STUDENT, lora.weights)
        except ValueError as error:
            raise UserError(path, "", str(error), f"give a LoRA of the base {base}") from None
        return True

    return fits
