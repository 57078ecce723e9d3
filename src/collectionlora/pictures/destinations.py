"""Where `edit` writes: results are named after photo and effects, and no file is replaced unasked."""

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from collectionlora.pictures.folders import list_photos, warn_of_left_out
from collectionlora.pictures.photos import is_picture_name, photo_format
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint

OUT = "--out"
MAX_NAME = 255  # bytes that file systems take
HASH_LENGTH = 16


@dataclass(frozen=True)
class Job:
    """A photo, the effects that are applied to it one after the other, and the file of the result."""

    photo: Path
    effects: tuple[str, ...]
    out: Path


def plan_jobs(photo: Path, choices: Sequence[tuple[str, ...]], out: Path | None) -> list[Job]:
    """The files that an edit will write, in order of photos and then of `choices`.

    Args:
        photo: a photo, or a folder of photos.
        choices: sequences of effects; each photo gets a result for each of them.
        out: a file, or a folder; by default the results of one photo lie beside it.

    Raises:
        UserError: there is no photo, a file cannot take all results, or `out` is no place for them.
    """
    if photo.is_dir():
        return _plan_folder(photo, choices, out)
    if not photo.exists():
        raise UserError(photo, "", "there is no such file", "check the path")
    if out is None:
        folder = photo.parent
    elif out.is_dir() or (len(choices) > 1 and not (out.exists() or is_picture_name(out))):
        folder = out
    elif len(choices) > 1:
        raise UserError(out, OUT, f"is one file for {len(choices)} results", "give a folder")
    else:
        photo_format(out)
        return [Job(photo, choices[0], out)]
    return [Job(photo, effects, folder / _result_name(photo.stem, effects)) for effects in choices]


def _plan_folder(folder: Path, choices: Sequence[tuple[str, ...]], out: Path | None) -> list[Job]:
    if out is None:
        raise UserError("", OUT, "is missing", "a folder of photos needs a folder for its results")
    if out.exists() and not out.is_dir():
        raise UserError(out, OUT, "is a file", "a folder of photos needs a folder for its results")
    if out.resolve().is_relative_to(folder.resolve()):
        # The next call would take the results for photos.
        raise UserError(out, OUT, "lies in the folder of the photos", "give a folder outside of it")
    photos = list_photos(folder)
    warn_of_left_out([folder])
    count = Counter(_same_name(photo.with_suffix("")) for photo in photos)
    jobs = []
    for photo in photos:
        # me.jpg and me.png must not become one file.
        name = photo.stem if count[_same_name(photo.with_suffix(""))] == 1 else photo.name
        place = out / photo.relative_to(folder).parent
        jobs += [Job(photo, effects, place / _result_name(name, effects)) for effects in choices]
    return jobs


def _result_name(name: str, effects: Sequence[str]) -> str:
    """Named after the photo and the effects; a photo's name that would be too long ends in a hash of it."""
    ending = f"-{'-'.join(effects)}.png"
    room = MAX_NAME - len(ending)
    whole = os.fsencode(name)
    if len(whole) > room > HASH_LENGTH:
        # A character that is cut in two is left out.
        start = whole[: room - HASH_LENGTH - 1].decode("utf-8", "ignore")
        name = f"{start}-{fingerprint(name)}"
    return f"{name}{ending}"


def _same_name(path: Path) -> str:
    """Equal for paths that are one on some file system: macOS and Windows do not tell `A` from `a`."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def select_jobs(jobs: Sequence[Job], keep: Sequence[Path], overwrite: bool) -> list[Job]:
    """The jobs whose results do not exist yet, or all of them with `overwrite`.

    Args:
        keep: further files that the edit reads, which no result may replace.

    Raises:
        UserError: a result would replace a photo or another result, or the only result exists.
    """
    read = {_identity(path) for path in [*(job.photo for job in jobs), *keep]}
    made: dict[str, Job] = {}
    for job in jobs:
        if _identity(job.out) in read:
            raise UserError(job.out, OUT, "is a file that this edit reads", "give another file or folder")
        other = made.setdefault(_same_name(job.out), job)
        if other is not job:
            message = f"would be the result of {other.photo} and of {job.photo}"
            raise UserError(job.out, OUT, message, "rename one of the photos")
    if overwrite:
        return list(jobs)
    if len(jobs) == 1 and _exists(jobs[0].out):
        raise UserError(jobs[0].out, OUT, "exists already", "give --overwrite, or another --out")
    return [job for job in jobs if not _exists(job.out)]


def _identity(path: Path) -> tuple[int, int] | Path:
    """Equal for all names of one file: links of both kinds, and spellings that the file system equates."""
    try:
        state = path.stat()
    except OSError:
        return path.absolute()
    return state.st_dev, state.st_ino


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()
