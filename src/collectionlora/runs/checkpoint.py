"""Checkpoints of a run: safetensors, and a JSON beside it that proves it whole; the last few are kept.

`step-00000042.safetensors` is the state BEFORE that step. `step-00000042.json` is written after it and holds
its length and hash, so that whatever damages the newest one, a resume finds out and takes the one before.
Files hold whole tensors, whoever held which shard of them, so that any number of processes can go on.

A checkpoint of a large base has tens of gigabytes: training waits only until they are copied to the host, and
goes on while a thread of the main process writes and hashes them. At a resume that process alone proves them.
"""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from safetensors import SafetensorError
from torch import Tensor

from collectionlora.system import processes
from collectionlora.system.files import MappedTensors, read_json, sha256, write_json, write_tensors

log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """The files of tensors, the newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def step_of(path: Path) -> int:
    """The number of steps that were taken before a checkpoint, by its name."""
    return int(path.stem.removeprefix("step-"))


class CheckpointWriter:
    """Writes one checkpoint at a time beside training; all processes call it, the main one writes.

    Args:
        keep: number of checkpoints that stay.
    """

    def __init__(self, folder: Path, num_steps: int, keep: int, pool: Executor):
        self.folder, self.num_steps, self.keep, self.pool = folder, num_steps, keep, pool
        self.began = monotonic()
        self.writing: Future[None] | None = None

    def is_due(self, minutes: float) -> bool:
        """Whether the last one is at least so old by the main process' clock; all processes must ask."""
        return processes.any_process(processes.is_main() and monotonic() - self.began >= 60 * minutes)

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy the state before `step`, and begin to write it; waits for the one before.

        Raises:
            UserError: the one before could not be written.
        """
        self.wait()  # the host has room for one copy
        self.began = monotonic()
        gathered = _copy_whole(tensors)
        if processes.is_main():
            parts = self.folder, step, self.num_steps, gathered, self.keep
            self.writing = self.pool.submit(save_checkpoint, *parts)

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            UserError: it could not be written.
        """
        if self.writing is not None:
            self.writing.result()
            self.writing = None


@contextmanager
def checkpoint_writer(folder: Path, num_steps: int, keep: int) -> Iterator[CheckpointWriter]:
    """A writer that has written all that it began when the block ends, in whatever way."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        writer = CheckpointWriter(folder, num_steps, keep, pool)
        yield writer
        writer.wait()


def save_checkpoint(
    folder: Path, step: int, num_steps: int, tensors: Mapping[str, Tensor], keep: int
) -> None:
    """Write the state before `step` of `num_steps`; drop all but the last `keep`."""
    path = checkpoint_path(folder, step)
    write_tensors(path, tensors, {"step": str(step)})
    proof = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(path.with_suffix(".json"), {"step": step, "num_steps": num_steps, **proof})
    # A later one is damaged, or this state would have come from it.
    later = [other for other in checkpoints(folder) if other.name > path.name]
    _drop(later)
    _drop(checkpoints(folder)[keep:])


def _copy_whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host of whole tensors in the main process, none in the others.

    A device holds one of them at a time.
    """
    copies = {}
    for name, tensor in tensors.items():
        whole = processes.whole(tensor)
        if processes.is_main():
            copies[name] = whole.detach().to("cpu", copy=True)
    return copies


def drop_checkpoints(folder: Path) -> None:
    """Remove all of them."""
    _drop(checkpoints(folder))


def _drop(paths: list[Path]) -> None:
    for path in paths:
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink()


def find_unfinished(folder: Path, asked: int | None = None) -> tuple[int, int] | None:
    """The newest checkpoint's step and the number of steps, if there are steps left to take.

    Args:
        asked: the number of steps, if it is known; else the checkpoint's own is taken.
    """
    for path in checkpoints(folder):
        facts = read_json(path.with_suffix(".json")) or {}
        step, num_steps = facts.get("step"), facts.get("num_steps") if asked is None else asked
        if isinstance(step, int) and isinstance(num_steps, int):
            return (step, num_steps) if step < num_steps else None
    return None


def latest_checkpoint(folder: Path) -> tuple[int, MappedTensors] | None:
    """Step and tensors of the newest whole checkpoint, or None; damaged ones are told of and passed over."""
    for path in checkpoints(folder):
        try:
            _prove(path)
            tensors = MappedTensors(path)
            return int(tensors.metadata["step"]), tensors
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("%s: is damaged (%s) and passed over for the one before", path, error)
    return None


def _prove(path: Path) -> None:
    """Compare a checkpoint with its JSON; a process killed between the two files leaves a whole one without.

    Raises:
        ValueError: it is not what was written.
    """
    beside = path.with_suffix(".json")
    if not beside.exists():
        return
    facts = read_json(beside)
    if facts is None or not {"bytes", "sha256"} <= facts.keys():
        raise ValueError(f"{beside.name} cannot be read")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise ValueError(f"{size} bytes of {facts['bytes']}")
    if sha256(path) != facts["sha256"]:
        raise ValueError("its bytes have changed")
