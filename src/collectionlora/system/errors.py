"""Faults that the user can fix, and a run that the user stopped."""

import errno
import reprlib
from pathlib import Path
from typing import Any

SPACE, ALLOWED = "free some space on that disk", "give yourself the right to it, or choose another folder"
A_FILE = "a file lies where a folder is needed: choose another folder, or move the file"
FILES = "raise the limit of the shell: ulimit -n 65536"
DISK = "look at the disk or the mount: the system's log says more"
HINTS = {
    **{errno.ENOSPC: SPACE, errno.EDQUOT: SPACE},
    **{errno.EROFS: ALLOWED, errno.EACCES: ALLOWED, errno.EPERM: ALLOWED},
    **{errno.EEXIST: A_FILE, errno.ENOTDIR: A_FILE},
    errno.EISDIR: "a folder lies where a file is needed: move it away",
    errno.ELOOP: "links lead in a circle: correct them",
    errno.ENAMETOOLONG: "give a shorter name",
    **{errno.EMFILE: FILES, errno.ENFILE: FILES},
    **{errno.EIO: DISK, errno.ESTALE: DISK, errno.ENODEV: DISK, errno.ENXIO: DISK},
}
LOWER = "lower data.resolution, distill.batch_size, teach.batch_size, student.rank, critic.rank or teach.rank"
SAVE = "model.gradient_checkpointing=true, distill.moments=8bit or model.quantization=nf4"
LEFT = ("closed by peer", "reset by peer", "broken pipe", "remote process exited")  # gloo's words and NCCL's
MAX_MESSAGE = 600  # characters of a message: what is wrong may be a whole file in one line
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def quote(value: Any) -> str:
    """A value of any size as a message shows it."""
    try:
        return _short.repr(value)
    except ValueError:  # Python writes no integer of thousands of digits
        return "a number of thousands of digits"


def one_line(text: str) -> str:
    """Text as one line that a terminal shows as it stands: what does not print is written as its escape."""
    spaced = text.replace("\n", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in spaced)


class UserError(ValueError):
    """Bad input: the file, the field in it, what is wrong, and how to fix it; printed as one line."""

    def __init__(self, file: Path | str, field: str, message: str, hint: str):
        if len(message) > MAX_MESSAGE:
            message = f"{message[:MAX_MESSAGE]}..."
        parts = (one_line(str(part)) for part in (file, field, message, hint))
        self.file, self.field, self.message, self.hint = parts
        place = ": ".join(part for part in (self.file, self.field) if part)
        super().__init__(f"{place}: {self.message}; {self.hint}")

    def as_dict(self) -> dict[str, str]:
        """The problem as `check --json` lists it."""
        return {"file": self.file, "field": self.field, "message": self.message, "hint": self.hint}


class Interrupted(Exception):
    """The user stopped a run; its state is saved."""


def cannot_write(path: Path | str, error: OSError) -> UserError:
    """What the system says when a file cannot be written, with what to do about it."""
    hint = HINTS.get(error.errno or 0, "choose another place")
    return UserError(path, "", f"cannot be written ({error.strerror or error})", hint)


def explain_fault(error: Exception) -> UserError | None:
    """No fault of this process: no memory, no space, no permission, another process gone; else None."""
    if isinstance(error, OSError) and error.errno in HINTS:
        return UserError(error.filename or "output", "", error.strerror or str(error), HINTS[error.errno])
    # torch's own classes and texts, without an import of torch.
    text = str(error).lower()
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text)
    ):
        why = text.split("\n")[0].rpartition("] ")[2] or "allocation refused"
        hint = f"{LOWER}, or set {SAVE}; what is saved is kept; collectionlora plan counts"
        return UserError("memory", "", f"is not enough ({why})", hint)
    if isinstance(error, RuntimeError) and any(said in text for said in LEFT):
        return process_stopped()
    return None


def process_stopped() -> UserError:
    """Another process of this launch is gone, or its host is."""
    message = "another process of this launch stopped"
    hint = "see what it says of why, and start again: distill --resume goes on with any number of processes"
    return UserError("processes", "", message, hint)
