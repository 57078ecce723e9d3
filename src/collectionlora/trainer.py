"""The loop around any training: steps, log, checkpoints, interruption and exact resume.

It knows nothing of what is trained. A `Step` is a pure function of its tensors and the step's number, so
loading the tensors and going on from the number repeats the uninterrupted run. With several processes
all take every step and stop at the same one; the main process alone logs, reports and writes the checkpoint,
which holds for all of them.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from torch import Tensor

from collectionlora import processes
from collectionlora.checkpoint import latest_checkpoint, save_checkpoint
from collectionlora.files import write_text

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

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resume needs."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


class Interrupted(Exception):
    """The user stopped a run; its state is saved."""


StepProgress = Callable[[int, int, dict[str, float]], None]  # (steps done, steps in all, metrics)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question that the loop asks between two steps."""
    asked = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(step: Step, folder: Path, checkpoint_every: int, resume: bool, progress: StepProgress) -> None:
    """Take all steps of a run, from its newest checkpoint if `resume`.

    Raises:
        Interrupted: the user stopped it; the state is saved in `folder`.
        UserError: the step proves to be broken, before anything is written.
    """
    step.verify()
    checkpoints = folder / "checkpoints"
    found = latest_checkpoint(checkpoints) if resume else None
    first = 0
    if found:
        first, tensors = found
        step.load_tensors(tensors)
    with stop_requested() as stop, opened_log(folder / LOG, first) as write_log:
        for number in range(first, step.num_steps):
            metrics = step(number)
            last = number + 1 == step.num_steps
            stopping = processes.any_process(stop())
            write_log(number, metrics)
            # In every process: a preview of a sharded base takes all of them.
            progress(number + 1, step.num_steps, metrics)
            due = stopping or last or (number + 1) % checkpoint_every == 0
            if due:
                save_checkpoint(checkpoints, number + 1, step.tensors())
            if stopping and not last:
                processes.barrier()
                raise Interrupted(f"stopped after step {number + 1} of {step.num_steps}")
    processes.barrier()


@contextmanager
def opened_log(path: Path, first: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function for the main process that logs a step's metrics, after those of the steps before `first`."""
    if not processes.is_main():
        yield lambda _step, _metrics: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter() - _cut_log(path, first)
    # By lines, so that the log is as new as any checkpoint.
    with path.open("a", encoding="utf-8", buffering=1) as lines:

        def write(step: int, metrics: dict[str, float]) -> None:
            seconds = round(time.perf_counter() - began, 3)
            lines.write(json.dumps({"step": step, "seconds": seconds, **metrics}) + "\n")

        yield write


def _cut_log(log: Path, first: int) -> float:
    """Forget lines of steps that will be taken again; the seconds of those that are kept."""
    entries = []
    if log.exists():
        # A killed process leaves half a line at the end.
        whole_lines = log.read_text().rpartition("\n")[0]
        entries = [json.loads(line) for line in whole_lines.splitlines()]
    kept = [entry for entry in entries if entry["step"] < first]
    write_text(log, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept[-1]["seconds"] if kept else 0.0
