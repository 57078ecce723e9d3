"""A run's folder: one launch holds it at a time, and it remembers what the run depends on."""

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from collectionlora.config import Settings
from collectionlora.runs.checkpoint import checkpoints, drop_checkpoints, find_unfinished, step_of
from collectionlora.system import processes
from collectionlora.system.errors import UserError, cannot_write
from collectionlora.system.files import name_by_date, read_json, write_json
from collectionlora.system.locks import lock_file

LOCK, FACTS, CHECKPOINTS = "lock", "run.json", "checkpoints"
log = logging.getLogger(__name__)


@contextmanager
def hold(
    folder: Path, what: str = "this run", hint: str = "wait for it or stop it, or give another --run"
) -> Iterator[None]:
    """Hold a run's folder inside the block; of one launch the main process holds it for all.

    The kernel frees the lock however its process ends, so a killed run never blocks the next one. Where there
    are no locks it is said, and the run goes on.

    Raises:
        UserError: another process holds it; names which.
    """
    if not processes.is_main():
        yield
        return
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from None
    with file:
        try:
            lock_file(file)
        except BlockingIOError:
            file.seek(0)
            raise UserError(path, "", f"{what} is held by {_holder(file.read())}", hint) from None
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
        file.flush()
        yield


def _holder(text: str) -> str:
    try:
        who = json.loads(text)
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def refuse_elsewhere(folder: Path) -> None:
    """A run goes on where it was; without a shared folder another host may be the main one this time.

    Raises:
        UserError: a process on another host has steps of this run that the main one lacks.
    """
    found = checkpoints(folder / CHECKPOINTS)
    newest = found[0].name if found else ""
    if processes.any_process(newest > processes.from_main(newest)):
        message = "holds steps on another host than that of rank 0"
        hint = "give that host --node-rank 0 and --master-addr, or remove the folder there"
        raise UserError(folder, "", message, hint)


def refuse_unfinished(folder: Path) -> None:
    """A new run must not take the place of one that has steps left.

    Raises:
        UserError: it would.
    """
    left = _find_unfinished(folder)
    if left and processes.is_main():
        message = f"holds a run that stopped before step {left[0]} of {left[1]}"
        hint = "go on with --resume, or give a new run its own --run NAME, or remove the folder"
        raise UserError(folder, "", message, hint)


def refuse_finished(folder: Path, facts: Mapping[str, Any]) -> None:
    """A new run must not take the place of one that was finished with other facts.

    Raises:
        UserError: it would.
    """
    different = changes(folder, facts)
    if different and is_finished(folder) and processes.is_main():
        hint = "give the new run a name with --run NAME, or give --again to start over"
        raise UserError(folder, "", f"holds a finished run, but {different}", hint)


def steps_left(folder: Path, settings: Settings) -> int:
    """The number of steps that settings ask for and a folder's run has not taken; below 0 if it took more."""
    found = checkpoints(folder / CHECKPOINTS)
    taken = step_of(found[0]) if found else 0
    return settings.match.updates + settings.distill.student_updates - taken


def refuse_other_length(folder: Path, settings: Settings) -> None:
    """A run that goes on may be made longer, but its warm start only before it has ended.

    Raises:
        UserError: the run is beyond these lengths, or beyond the end that its warm start had.
    """
    found = checkpoints(folder / CHECKPOINTS)
    if not found or not processes.is_main():
        return
    taken = step_of(found[0])
    updates, student_updates = settings.match.updates, settings.distill.student_updates
    facts = read_json(folder / FACTS) or {}
    before = facts.get("match.updates", updates)
    given = f"--set match.updates={before}"
    if steps_left(folder, settings) < 0:
        message = f"holds {taken} steps, but these settings ask for {updates + student_updates}"
        given += f" --set distill.student_updates={facts.get('distill.student_updates', student_updates)}"
        raise UserError(folder, "", message, f"write {given}, as before, or start over with --again")
    if before != updates and taken > min(before, updates):
        message = f"match.updates was {before} and is {updates}, but {taken} steps are taken"
        raise UserError(folder, "", message, f"write {given}, or give the new run a name with --run NAME")


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a run that has no steps left."""
    return bool(checkpoints(folder / CHECKPOINTS)) and not _find_unfinished(folder)


def _find_unfinished(folder: Path) -> tuple[int, int] | None:
    """The newest checkpoint's step and the number of steps that were last asked for, if any are left."""
    facts = read_json(folder / FACTS) or {}
    updates, more = facts.get("match.updates"), facts.get("distill.student_updates")
    # A checkpoint may be older than the wish for more steps.
    asked = updates + more if isinstance(updates, int) and isinstance(more, int) else None
    return find_unfinished(folder / CHECKPOINTS, asked)


def set_aside(folder: Path) -> None:
    """Move all that a run left in a folder, which this process holds, into a dated folder beside it."""
    if not processes.is_main():
        return
    left = [path for path in folder.iterdir() if path.name != LOCK]
    if not left:
        return
    aside = name_by_date(folder)
    aside.mkdir()
    for path in left:
        path.rename(aside / path.name)
    log.warning("%s: starts over; the earlier run is kept in %s", folder, aside)


def changes(folder: Path, facts: Mapping[str, Any]) -> str:
    """What is different from when the folder's run last went on, as text; empty if nothing is known to be."""
    before = read_json(folder / FACTS) or {}
    return ", ".join(
        f"{name} was {before[name]!r} and is {value!r}" if len(repr(value)) < 80 else name
        for name, value in facts.items()
        if name in before and before[name] != value
    )


def begin(folder: Path, facts: Mapping[str, Any], resume: bool, anyway: bool = False) -> bool:
    """Get a folder ready for a run, in the main process; returns whether to resume.

    Args:
        facts: what the result depends on. If they have changed, the checkpoints are of another run; one that
            has steps left is moved into a folder beside it.
        anyway: the user asked to resume, so that changes are said and the run goes on.
    """
    different = changes(folder, facts) if resume else ""
    if different:
        log.warning("%s: %s; the run %s", folder, different, "goes on" if anyway else "starts again")
        resume = anyway
        if not resume and _find_unfinished(folder):
            set_aside(folder)
    if not resume:
        drop_checkpoints(folder / CHECKPOINTS)
    write_json(folder / FACTS, dict(facts))
    return resume
