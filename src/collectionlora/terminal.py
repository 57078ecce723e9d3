"""What a verb shows: text and progress on stderr, one JSON object on stdout."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


class ProgressLine:
    """A live line for each piece of work: done, in all, rate, time left, the newest losses."""

    def __enter__(self) -> "ProgressLine":
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
        )
        self.tasks: dict[str, Any] = {}
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, what: str, done: int, total: int, metrics: dict[str, float]) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total, metrics="", rate="")
        text = " ".join(f"{name} {value:.3g}" for name, value in metrics.items())
        task = self.tasks[what]
        speed = self.bar.tasks[task].speed
        rate = f"{speed:.2f}/s" if speed else ""
        self.bar.update(task, completed=done, total=total, metrics=text, rate=rate)


@contextmanager
def joined_processes() -> Iterator[ProgressLine]:
    """All processes of the launch, and their number said; only the main one shows progress and results."""
    from collectionlora import processes

    with processes.joined():
        console.quiet = not processes.is_main()
        number = processes.world_size()
        console.print(f"{number} process{'es' if number > 1 else ''}")
        with ProgressLine() as progress:
            yield progress


def say(as_json: bool, result: dict[str, Any], text: str) -> None:
    """The result as JSON on stdout, or as text on stderr."""
    if console.quiet:
        return
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        console.print(text, highlight=False)
