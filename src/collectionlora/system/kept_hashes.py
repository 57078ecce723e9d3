"""Hashes of large files, kept between starts: a base and its teachers have gigabytes, and change seldom.

A file is known by its place, inode, length, time of change of its bytes, and time of change of anything about
it, which no program can set: one that was replaced, or edited and given its old times, is read again. Clocks
tick more coarsely than disks write, so nothing is kept of a file that changed a moment before it was read.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MIN_BYTES = 2**24  # below it reading is as quick as remembering
MIN_AGE = 60  # seconds; more than the coarsest clock of a file system, and than two machines' clocks differ


class FileState(NamedTuple):
    """What changes when a file does."""

    inode: int
    size: int
    changed: int
    touched: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        state = path.stat()
        return cls(state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def recall(path: Path, state: FileState) -> str | None:
    """The hash of a file that is still in this state; None if it is not known."""
    if state.size < MIN_BYTES:
        return None
    try:
        kept = json.loads(_place(path).read_bytes())
        return str(kept["sha256"]) if kept["state"] == list(state) and kept["path"] == str(path) else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def keep(path: Path, state: FileState, digest: str) -> None:
    """Keep a hash that was read after the file was in this state; nothing where it may have changed since."""
    if state.size < MIN_BYTES or time.time() - max(state.changed, state.touched) / 1e9 < MIN_AGE:
        return
    with suppress(OSError, RuntimeError):  # no home, or one that cannot be written: it is read again
        if FileState.of(path) != state:
            return
        place = _place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps({"path": str(path), "state": state, "sha256": digest}))
        partial.replace(place)


def _place(path: Path) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(cache) / "collectionlora" / "hashes" / f"{name}.json"
