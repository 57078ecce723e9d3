"""Names of the files in `cache/`: fingerprints of all that a cached file depends on.

A change of base, photos, teacher, prompt or settings gives another name, so a file is used only for what
it was made from.
"""

from pathlib import Path
from typing import Any

from collectionlora.adapters.alpha import lora_files
from collectionlora.backbones import family_of, list_files
from collectionlora.collection import MANIFEST, Collection, Effect
from collectionlora.config import Settings, result_settings
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint

CACHE = "cache"
MAX_READ = 100_000_000  # bytes of a base whose contents are read at every start


def cache_key(collection: Collection, settings: Settings, *parts: Any) -> str:
    """The fingerprint of `parts` and of all that anything cached depends on.

    A base is known by what it is, and not by where it lies: moved, or on another machine, it is the same.
    """
    base = collection.manifest.base
    sizes = family_of(base).side_multiple
    held = result_settings(settings, ["model", "data"])
    return fingerprint(base_identity(base) or base, sizes, held, *parts)


def samples_key(collection: Collection, settings: Settings, *parts: Any) -> str:
    """The same of samples of a teacher or the base; the number of general photos is not in it."""
    targets, schedule = settings.targets, family_of(collection.manifest.base).schedule
    sampler = [targets.steps, targets.guidance_scale, targets.samples, *filter(None, [schedule])]
    return cache_key(collection, settings, *sampler, *parts)


def base_identity(base: str) -> str:
    """What tells a base from another one under the same name, without reading its gigabytes.

    A snapshot of the hub is known by its commit, also while it is downloaded. Others are known by their
    contents if they are small, and a large folder by the names, sizes and times of change of its files:
    a model that is put into it in place is another one. Of a base that is not on this machine nothing is
    known, and it is the empty text.
    """
    try:
        folder, files = list_files(base)
    except UserError:
        return ""
    if folder.parent.name == "snapshots" and not Path(base).is_dir():
        return folder.name
    if sum(path.stat().st_size for path in files) < MAX_READ:
        return fingerprint(*files)
    states = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return fingerprint(*((name, state.st_size, state.st_mtime_ns) for name, state in states))


def base_facts(base: str) -> dict[str, str]:
    """The identity of a base as a run remembers it; nothing where nothing is known."""
    identity = base_identity(base)
    return {"base files": identity} if identity else {}


def effect_key(collection: Collection, effect: Effect, settings: Settings) -> str:
    """The fingerprint of an effect's targets; their noise is drawn from it."""
    teacher, photos = lora_files(collection.teacher_path(effect)), collection.photo_paths(effect)
    seen = photos + reference_parts(collection, effect)
    return samples_key(collection, settings, effect.teacher_prompt, *teacher, *seen)


def reference_parts(collection: Collection, effect: Effect) -> list[Any]:
    """What reference images add to a fingerprint; nothing where there are none."""
    paths = collection.reference_paths(effect)
    return ["references", *paths] if paths else []


def cache_path(collection: Collection, name: str, key: str) -> Path:
    return collection.folder / CACHE / f"{name}-{key}.safetensors"


def refuse_changed(collection: Collection, what: str, before: str, now: str) -> None:
    """Refuse what was read while a user replaced a file of it; its fingerprints say so.

    Raises:
        UserError: they are not the same.
    """
    if before != now:
        message = "a teacher or a photo changed while it was read"
        raise UserError(collection.folder / MANIFEST, what, message, "run the command again")
