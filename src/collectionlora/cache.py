"""Names of the files in `cache/`: fingerprints of all that a cached file depends on.

A change of base, photos, teacher, prompt or settings gives another name, so a file is used only for what
it was made from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collectionlora.backbones import family_of, list_files
from collectionlora.collection import Collection, Effect
from collectionlora.config import Settings, result_settings
from collectionlora.pictures.photos import read_size
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint

CACHE = "cache"
MAX_READ = 100_000_000  # bytes of a base whose contents are read at every start


def cache_key(collection: Collection, settings: Settings, *parts: Any) -> str:
    """The fingerprint of `parts` and of all that anything cached depends on, but for `shape_parts`."""
    base = collection.manifest.base
    held = {**result_settings(settings, ["model"]), "data.resolution": settings.data.resolution}
    return fingerprint(base, base_identity(base), held, *parts)


def shape_parts(collection: Collection, photos: Sequence[Path], settings: Settings) -> list[Any]:
    """What the shapes of photos add to a fingerprint; nothing where all are squares of the working size.

    Those are taken as they are under every rule, so that their files stay good and noise that is drawn from a
    fingerprint stays the same.

    Raises:
        UserError: a photo cannot be read.
    """
    side = settings.data.resolution
    if all(read_size(photo) == (side, side) for photo in photos):
        return []
    return ["shapes", settings.data.crop, family_of(collection.manifest.base).side_multiple]


def base_identity(base: str) -> str:
    """What tells a base from another one under the same name, without reading its gigabytes.

    A small one is known by its contents, a snapshot of the hub by its commit, a folder by the names, sizes
    and times of change of its files: a model that is put into it in place is another one. Of a base
    that is not on this machine nothing is known, and it is the empty text.
    """
    try:
        folder, files = list_files(base)
    except UserError:
        return ""
    if sum(path.stat().st_size for path in files) < MAX_READ:
        return fingerprint(*files)
    if not Path(base).is_dir():
        return folder.name
    states = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return fingerprint(*((name, state.st_size, state.st_mtime_ns) for name, state in states))


def base_facts(base: str) -> dict[str, str]:
    """The identity of a base as a run remembers it; nothing where nothing is known."""
    identity = base_identity(base)
    return {"base files": identity} if identity else {}


def effect_key(
    collection: Collection, effect: Effect, settings: Settings, always_squares: bool = False
) -> str:
    """The fingerprint of an effect's targets.

    Args:
        always_squares: as it was when every photo was cropped to a square.
    """
    teacher, photos = collection.teacher_path(effect), collection.photo_paths(effect)
    seen = photos + reference_parts(collection, effect)
    shown = photos + collection.reference_paths(effect)
    shapes = [] if always_squares else shape_parts(collection, shown, settings)
    return cache_key(collection, settings, settings.targets, effect.teacher_prompt, teacher, *seen, *shapes)


def find_squares(collection: Collection, settings: Settings) -> list[Path]:
    """Targets of an earlier version, which cropped every photo, where there are none by today's rule."""
    found = []
    for effect in collection.effects:
        key, before = (effect_key(collection, effect, settings, squares) for squares in (False, True))
        path, earlier = (cache_path(collection, effect.name, name) for name in (key, before))
        if earlier.exists() and not path.exists():
            found.append(earlier)
    return found


def reference_parts(collection: Collection, effect: Effect) -> list[Any]:
    """What reference images add to a fingerprint; nothing where there are none."""
    paths = collection.reference_paths(effect)
    return ["references", *paths] if paths else []


def cache_path(collection: Collection, name: str, key: str) -> Path:
    return collection.folder / CACHE / f"{name}-{key}.safetensors"
