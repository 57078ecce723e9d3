"""What a folder of photos holds: the photos, and by name all that is left out and why.

Nothing is left out in silence: `check` names every such file, a run says it in one line.
"""

import importlib.util
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from collectionlora.system.errors import UserError, one_line

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
OTHER_PICTURES = {
    *(".avif", ".jxl", ".gif", ".apng", ".svg", ".psd", ".xcf", ".eps", ".ico", ".tga", ".exr", ".hdr"),
    *(".jp2", ".j2k", ".jpf", ".jpx", ".jxr", ".wdp", ".hdp", ".qoi", ".ppm", ".pgm", ".pnm"),
    *(".dng", ".raw", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2"),
    *(".raf", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".rwl", ".mrw", ".kdc", ".erf", ".gpr"),
}
# Folders and files that systems put among photos, in small letters; hidden ones begin with a dot.
SYSTEM_NAMES = {
    *("__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
    *("$recycle.bin", "system volume information", "lost+found", "__pycache__"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}
HEIC = "HEIC is not read: pip install 'collectionlora[heic]', or save it as JPEG"
KIND = "this kind of picture is not read: save it as JPEG or PNG"
HIDDEN = "a hidden file or folder"
SYSTEM = "made by a system or a program, no photo of yours"
LINK = "a link to a folder is not followed: put the folder itself there"
OTHER = "no picture"
MAX_NAMES = 3  # in a line
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """A file or folder among photos that is not read, and why."""

    path: Path
    reason: str


def find_photos(folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """The photos of a folder by name, its sub-folders included, and all else that lies there.

    Of a sub-folder that is left out, or that cannot be opened, only its own name is told.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(folder, "photos", "there is no such folder", "put photos there or fix the path")
    photos, left_out = [], []

    def cannot_open(error: OSError) -> None:
        left_out.append(LeftOut(Path(os.fsdecode(error.filename)), f"cannot be opened ({error.strerror})"))

    for place, folders, files in os.walk(folder, onerror=cannot_open):
        for path in [Path(place, name) for name in files]:
            if reason := _why_left_out(path):
                left_out.append(LeftOut(path, reason))
            else:
                photos.append(path)
        for path in [Path(place, name) for name in folders]:
            if reason := _why_not_entered(path):
                left_out.append(LeftOut(path, reason))
                folders.remove(path.name)
    return sorted(photos), sorted(left_out, key=lambda one: one.path)


def _why_not_entered(folder: Path) -> str:
    """Why a folder is not entered; empty if it is."""
    return _why_not_users(folder) or (LINK if folder.is_symlink() else "")


def _why_left_out(path: Path) -> str:
    """Why a file is not read; empty if it is."""
    if reason := _why_not_users(path):
        return reason
    suffix = path.suffix.lower()
    if suffix in photo_suffixes():
        # A link that leads nowhere counts as a photo: whoever reads it says what is wrong with it.
        return "" if path.is_symlink() or path.is_file() else OTHER
    if suffix in HEIC_SUFFIXES:
        return HEIC
    return KIND if suffix in OTHER_PICTURES else OTHER


def _why_not_users(path: Path) -> str:
    if path.name.startswith("."):
        return HIDDEN
    return SYSTEM if path.name.casefold() in SYSTEM_NAMES else ""


def photo_suffixes() -> tuple[str, ...]:
    """The endings of photos that are read here: those of HEIC need an extra."""
    return PHOTO_SUFFIXES + (HEIC_SUFFIXES if reads_heic() else ())


@cache
def reads_heic() -> bool:
    """Whether the extra `heic` is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def list_photos(folder: Path) -> list[Path]:
    """The photos of a folder by name, its sub-folders included.

    Raises:
        UserError: no such folder, or no photo in it.
    """
    photos, left_out = find_photos(folder)
    if not photos:
        message = "; ".join(["holds no photos", *describe_left_out(folder, left_out)])
        raise UserError(folder, "photos", message, f"put {', '.join(PHOTO_SUFFIXES)} files there")
    return photos


def describe_left_out(folder: Path, left_out: Sequence[LeftOut]) -> list[str]:
    """One text for each reason, with the first names and the number of the others."""
    names: dict[str, list[str]] = {}
    for one in left_out:
        names.setdefault(one.reason, []).append(one_line(str(one.path.relative_to(folder))))
    return [
        f"left out: {', '.join(some[:MAX_NAMES])}"
        + (f" and {len(some) - MAX_NAMES} more" if len(some) > MAX_NAMES else "")
        + f" ({reason})"
        for reason, some in names.items()
    ]


def warn_of_left_out(folders: Iterable[Path]) -> None:
    """Say in one line for each folder what is left out of it.

    Raises:
        UserError: no such folder.
    """
    for folder in sorted(set(folders)):
        if texts := describe_left_out(folder, find_photos(folder)[1]):
            log.warning("%s: %s", one_line(str(folder)), "; ".join(texts))


def by_name(paths: Sequence[Path], name_of: Callable[[Path], str]) -> dict[str, Path]:
    """Files by a name without an ending, spelled alike whichever system wrote it.

    Raises:
        UserError: two have one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        name = compose_name(name_of(path))
        if name in found:
            other = found[name].name
            raise UserError(path, "", f"has the name of {other}, but for its ending or folder", "rename one")
        found[name] = path
    return found


def compose_name(name: str) -> str:
    """A name in one spelling: a Mac writes é as e and an accent, other systems as one character."""
    return unicodedata.normalize("NFC", name)


def find_spelling(folder: Path, relative: str) -> Path:
    """A path in a folder, each part as it is spelled there; as it is given where there is no such part."""
    path = folder
    for part in Path(relative).parts:
        path /= part
        if not path.exists() and path.parent.is_dir():
            twins = [
                other for other in path.parent.iterdir() if compose_name(other.name) == compose_name(part)
            ]
            path = twins[0] if twins else path
    return path
