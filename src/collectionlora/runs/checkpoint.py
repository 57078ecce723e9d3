"""Checkpoints of a run: safetensors, and a JSON beside it that proves it whole; the last few are kept.

`step-00000042.safetensors` is the state BEFORE that step. `step-00000042.json` is written after it and holds
its length and hash, so that whatever damages the newest one, a resume finds out and takes the one before.
Files hold whole tensors, whoever held which shard of them, so that any number of processes can go on.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from collectionlora.system import processes
from collectionlora.system.files import load_tensors, read_json, sha256, write_json, write_tensors

log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """The files of tensors, the newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def save_checkpoint(
    folder: Path, step: int, num_steps: int, tensors: Mapping[str, Tensor], keep: int
) -> None:
    """Write the state before `step` of `num_steps`; drop all but the last `keep`.

    All processes call it, the main one writes.
    """
    gathered = _gather(tensors)
    if not processes.is_main():
        return
    path = checkpoint_path(folder, step)
    write_tensors(path, gathered, {"step": str(step)})
    proof = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(path.with_suffix(".json"), {"step": step, "num_steps": num_steps, **proof})
    # A later one is damaged, or this state would have come from it.
    later = [other for other in checkpoints(folder) if other.name > path.name]
    _drop(later)
    _drop(checkpoints(folder)[keep:])


def _gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the main process, none in the others; a device holds one of them at a time."""
    gathered = {}
    for name, tensor in tensors.items():
        whole = processes.whole(tensor)
        if processes.is_main():
            gathered[name] = whole.cpu()
    return gathered


def drop_checkpoints(folder: Path) -> None:
    """Remove all of them."""
    _drop(checkpoints(folder))


def _drop(paths: list[Path]) -> None:
    for path in paths:
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink()


def find_unfinished(folder: Path) -> tuple[int, int] | None:
    """The newest checkpoint's step and the number of steps, if there are steps left to take."""
    for path in checkpoints(folder):
        facts = read_json(path.with_suffix(".json")) or {}
        if "step" in facts and "num_steps" in facts:
            return (facts["step"], facts["num_steps"]) if facts["step"] < facts["num_steps"] else None
    return None


def latest_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """Step and tensors of the newest whole checkpoint, or None; it is said which ones are damaged."""
    for path in checkpoints(folder):
        try:
            _prove(path)
            tensors, header = load_tensors(path)
            return int(header["step"]), tensors
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
