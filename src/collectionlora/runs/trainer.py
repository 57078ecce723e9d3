"""The loop around any training: steps, log, checkpoints, interruption and exact resume.

It knows nothing of what is trained. A `Step` is a pure function of its tensors and the step's number, so
loading the tensors and going on from the number repeats the uninterrupted run. With several processes
all take every step and stop at the same one; the main process alone logs, reports and writes the checkpoint,
which holds for all of them. Whoever trains in a folder holds it (`folder.hold`).
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from torch import Tensor

from collectionlora.runs.checkpoint import checkpoint_path, checkpoint_writer, latest_checkpoint
from collectionlora.runs.folder import CHECKPOINTS, FACTS
from collectionlora.system import processes
from collectionlora.system.errors import Interrupted, UserError
from collectionlora.system.files import put_on_disk, write_text

LOG = "log.jsonl"


class Step(Protocol):
    """Something trained step by step."""

    @property
    def num_steps(self) -> int: ...

    def verify(self) -> None:
        """Refuse to start if the step would train the wrong thing; cheaper than a step."""
        ...

    def __call__(self, step: int) -> dict[str, float]:
        """Take one step; returns what to log by name."""
        ...

    def stream_at(self, step: int) -> tuple[str, str | None]:
        """What a step learns from: the name of its stream, and the effect if it is a single one."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resume needs."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


StepProgress = Callable[[int, int, dict[str, float]], None]  # (steps done, steps in all, metrics)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C, SIGTERM and a terminal that closes into a question that the loop asks between steps."""
    asked = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` asks
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    step: Step, folder: Path, checkpoint_minutes: float, resume: bool, progress: StepProgress, keep: int
) -> None:
    """Take all steps of a run, from its newest whole checkpoint if `resume`.

    Args:
        checkpoint_minutes: between two checkpoints; 0 makes one after each step.
        keep: number of checkpoints that stay.

    Raises:
        Interrupted: the user stopped it; the state is saved in `folder`.
        UserError: the step proves to be broken, before anything is written; a loss is not finite, a
            checkpoint does not fit, or nothing can be written.
    """
    step.verify()
    checkpoints = folder / CHECKPOINTS
    first = load_newest(step, checkpoints) if resume else 0
    with (
        stop_requested() as stop,
        open_log(folder / LOG, first) as write_log,
        checkpoint_writer(checkpoints, step.num_steps, keep) as writer,
    ):
        for number in range(first, step.num_steps):
            metrics = step(number)
            check_finite(step, number, metrics, folder)
            last = number + 1 == step.num_steps
            stopping = processes.any_process(stop())
            write_log(number, metrics)
            # In every process: a preview of a sharded base takes all of them.
            progress(number + 1, step.num_steps, metrics)
            if writer.is_due(checkpoint_minutes) or stopping or last:
                if processes.is_main():
                    put_on_disk(folder / LOG)  # so that the log is never older than a checkpoint
                writer.save(number + 1, step.tensors())
            if stopping and not last:
                writer.wait()
                processes.barrier()
                raise Interrupted(f"stopped after step {number + 1} of {step.num_steps}")
    processes.barrier()


def load_newest(step: Step, checkpoints: Path) -> int:
    """Put a run into the state of its newest whole checkpoint; returns the step that is next.

    The main process reads and proves it, the others get it from there. Shapes are those of whole tensors, on
    both sides: a shard has the shape of what it is a share of.

    Raises:
        UserError: the checkpoint has other tensors than the run.
    """
    found = latest_checkpoint(checkpoints) if processes.is_main() else None
    first, held = found or (0, {})
    first = processes.from_main(first)
    if first == 0:
        return 0
    tensors = processes.FromProcess(held)
    for name, tensor in step.tensors().items():
        shape = tensors.shape(name)
        if shape != list(tensor.shape):
            found_shape = "missing" if shape is None else shape
            message = f"is {found_shape}, this run needs {list(tensor.shape)}"
            hint = f"give the settings of {checkpoints.parent / FACTS}, or start a new run"
            raise UserError(checkpoint_path(checkpoints, first), name, message, hint)
    step.load_tensors(tensors)
    return first


def check_finite(step: Step, number: int, metrics: Mapping[str, float], folder: Path) -> None:
    """Stop a run that has left the finite numbers, before its state is written anywhere.

    Raises:
        UserError: a metric is not finite; names the step, its stream and effect.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            stream, effect = step.stream_at(number)
            where = f"{stream} stream, effect {effect}" if effect else f"{stream} stream"
            message = f"is {value} at step {number + 1} of {step.num_steps} ({where})"
            hint = "resume with a smaller learning rate, or look at what this step learns from"
            raise UserError(folder, name, message, f"the last good checkpoint is kept: {hint}")


@contextmanager
def open_log(path: Path, first: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function for the main process that logs a step's metrics, after those of the steps before `first`."""
    if not processes.is_main():
        yield lambda _step, _metrics: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter() - _cut_log(path, first)
    with path.open("a", encoding="utf-8", buffering=1) as lines:

        def write(step: int, metrics: dict[str, float]) -> None:
            seconds = round(time.perf_counter() - began, 3)
            lines.write(json.dumps({"step": step, "seconds": seconds, **metrics}) + "\n")

        yield write


def _cut_log(log: Path, first: int) -> float:
    """Forget lines of steps that will be taken again; the seconds of those that are kept."""
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []:
        try:
            entry = json.loads(line)
            if entry["step"] >= first or not isinstance(entry["seconds"], int | float):
                break
        except (ValueError, KeyError, TypeError):
            break  # a process that was killed leaves half a line at the end
        kept.append(entry)
    write_text(log, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept[-1]["seconds"] if kept else 0.0
