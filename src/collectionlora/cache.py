"""Names of the files in `cache/`: fingerprints of all that a cached file depends on.

A change of photos, teacher, prompt or settings gives another name, so a file is used only for what
it was made from.
"""

from pathlib import Path
from typing import Any

from collectionlora.collection import Collection, Effect
from collectionlora.config import Settings, result_settings
from collectionlora.system.files import fingerprint

CACHE = "cache"


def cache_key(collection: Collection, settings: Settings, *parts: Any) -> str:
    """The fingerprint of `parts` and of all that anything cached depends on."""
    return fingerprint(collection.manifest.base, result_settings(settings, ["model", "data"]), *parts)


def effect_key(collection: Collection, effect: Effect, settings: Settings) -> str:
    """The fingerprint of an effect's targets."""
    teacher, photos = collection.teacher_path(effect), collection.photo_paths(effect)
    seen = photos + reference_parts(collection, effect)
    return cache_key(collection, settings, settings.targets, effect.teacher_prompt, teacher, *seen)


def reference_parts(collection: Collection, effect: Effect) -> list[Any]:
    """What reference images add to a fingerprint; nothing where there are none."""
    paths = collection.reference_paths(effect)
    return ["references", *paths] if paths else []


def cache_path(collection: Collection, name: str, key: str) -> Path:
    return collection.folder / CACHE / f"{name}-{key}.safetensors"
