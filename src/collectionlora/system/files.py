"""Files that are whole or absent: everything is written aside, put on the disk, and renamed.

What is made from other things (a cache, pictures) and found damaged is made again, and it is said.
"""

import filecmp
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from collectionlora.system.errors import UserError, cannot_write
from collectionlora.system.kept_hashes import FileState, keep, recall

UMASK_LOCK = threading.Lock()  # a process has one umask, which can only be read by setting it
MAX_NAME = 120  # bytes of a file's name that fit into a temporary one, which file systems end at 255
Model = TypeVar("Model", bound=BaseModel)
log = logging.getLogger(__name__)
NUMBERS = re.compile(r'\[\n([^][{}"]+)\]')  # a list over several lines; line breaks in texts are escaped


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path near `path`; on success it becomes `path`, on failure it is removed.

    It lies in a folder of its own beside `path`: libraries have temporary files of their own beside what they
    write, and a kill would leave those there.

    Raises:
        UserError: the disk is full, the folder is read-only, or the like.
    """
    # A name that a file system takes as it is may be too long for it with more around it.
    short = path.name if len(os.fsencode(path.name)) <= MAX_NAME else fingerprint(path.name)
    folder = path.with_name(f".{short}.{socket.gethostname()}.{os.getpid()}.partial")
    partial = folder / "whole"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        folder.mkdir(exist_ok=True)
        try:
            yield partial
            # Otherwise a loss of power can leave the new name with nothing behind it.
            put_on_disk(partial)
            # safetensors makes files that only their owner reads; follow the user's umask as others do.
            with UMASK_LOCK:
                umask = os.umask(0)
                os.umask(umask)
            partial.chmod(0o666 & ~umask)
            partial.replace(path)
            with suppress(OSError):  # some network file systems cannot, nor can Windows
                put_on_disk(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def is_utf8(path: Path) -> bool:
    """Whether a path is text, as safetensors needs it; names from an old archive may be other bytes."""
    return os.fsencode(path).decode("utf-8", "replace") == str(path)


def put_on_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, survives a loss of power."""
    # Windows syncs only what is open for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes of this machine that were killed had begun to write in a folder."""
    for partial in folder.glob(".*.partial"):
        name, _, process = partial.name.removesuffix(".partial").rpartition(".")
        if name.endswith(f".{socket.gethostname()}") and process.isdecimal() and not _lives(int(process)):
            shutil.rmtree(partial, ignore_errors=True)


def _lives(process: int) -> bool:
    if os.name == "nt":  # where this call would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, of whatever size, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """The same, read once as long as the file stays as it is: a teacher may have gigabytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return _sha256_of(path.absolute(), FileState.of(path))
    except OSError as error:
        hint = "put a readable file there, or remove it"
        raise UserError(path, "", f"cannot be read ({error.strerror or error})", hint) from None


@cache
def _sha256_of(path: Path, state: FileState) -> str:
    digest = recall(path, state)
    if digest is None:
        digest = sha256(path)
        keep(path, state, digest)
    return digest


def fingerprint(*parts: Any) -> str:
    """A short hash of values, and of the contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update((sha256_once(part) if isinstance(part, Path) else repr(part)).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def copy_whole(source: Path, path: Path) -> None:
    with write_whole(path) as partial:
        shutil.copyfile(source, partial)


def refuse_other(source: Path, path: Path) -> None:
    """Refuse to copy a file to where another one lies.

    Raises:
        UserError: `path` exists and has other contents than `source`.
    """
    if path.exists() and not filecmp.cmp(source, path, shallow=False):
        raise UserError(path, "", f"exists already and is not {source}", "move one of them away")


@contextmanager
def keep_earlier(path: Path) -> Iterator[None]:
    """Keep the file that the block replaces, if its contents change, as `NAME-DATE.SUFFIX` beside it."""
    if not path.exists():
        yield
        return
    kept = name_by_date(path)
    copy_whole(path, kept)
    try:
        yield
    except BaseException:
        kept.unlink()  # what was to be replaced is still there
        raise
    if filecmp.cmp(path, kept, shallow=False):
        kept.unlink()
    else:
        log.warning("%s: is written anew; the earlier file is kept as %s", path, kept.name)


def name_by_date(path: Path) -> Path:
    """A name beside `path` with the time of its last change, under which nothing lies yet."""
    changed = datetime.fromtimestamp(path.stat().st_mtime)
    suffix = "" if path.is_dir() else path.suffix
    name = f"{path.name.removesuffix(suffix)}-{changed:%Y-%m-%d-%H%M%S}"
    numbers = (f"-{number}" if number > 1 else "" for number in count(1))
    return next(p for end in numbers if not (p := path.with_name(f"{name}{end}{suffix}")).exists())


def move_aside(path: Path) -> None:
    """Rename a file that no longer fits what stands beside it by its date."""
    with put_aside(path):
        pass


@contextmanager
def put_aside(path: Path) -> Iterator[None]:
    """The same of a file that will not fit what the block writes; it comes back if the block fails."""
    kept = name_by_date(path)
    path.rename(kept)
    try:
        yield
    except BaseException:
        kept.rename(path)
        raise
    log.warning("%s: is out of date and kept as %s", path, kept.name)


def write_text(path: Path, text: str) -> None:
    with write_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """An entry a line, and a list of numbers on one line: there are thousands in the result of a bench."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    text = NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
    with write_whole(path) as partial:
        # What is no character, of a file name that is not UTF-8, becomes its escape in JSON.
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote of a mapping; None if there is no file or it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_models(path: Path, kind: type[Model], hint: str) -> dict[str, Model]:
    """What `write_json` wrote of several models by name; none if there is no file.

    Raises:
        UserError: the file is damaged; `hint` says what to do then.
    """
    if not path.exists():
        return {}
    try:
        return TypeAdapter(dict[str, kind]).validate_json(path.read_bytes())  # type: ignore[valid-type]
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(path, field, first["msg"], hint) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file with a header; the same content gives the same bytes."""
    whole: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        held = tensor.detach().contiguous().cpu()
        # safetensors refuses one tensor under two names: the pieces of a fused LoRA share their A.
        whole[name] = held.clone() if held.data_ptr() in places else held
        places.add(held.data_ptr())
    with write_whole(path) as partial:
        try:
            save_file(whole, partial, dict(metadata))
        except SafetensorError as error:
            raise _as_os_error(error) from None
        if metadata:
            _sort_metadata(partial)


def _as_os_error(error: SafetensorError) -> OSError:
    """safetensors gives the system's errors as text."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file.

    Raises:
        SafetensorError, OSError: it is damaged, or cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is there, as long as its header says; a damaged one is told of."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except FileNotFoundError:
        return False
    except (SafetensorError, OSError) as error:
        log.warning("%s: is damaged (%s); it is made again", path, error)
        return False


class MappedTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for; `metadata` is its header.

    Raises:
        SafetensorError, OSError: the file is damaged, or cannot be read.
    """

    def __init__(self, path: Path):
        self._file = safe_open(path, framework="pt")
        self._names = dict.fromkeys(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The same of a file that can be made again; None if there is none, or it is damaged."""
    try:
        return load_tensors(path)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("%s: is damaged (%s); it is made again", path, error)
        return None


def _sort_metadata(path: Path) -> None:
    """Put the header's metadata in order of its keys, in place: safetensors writes it in random order."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))
