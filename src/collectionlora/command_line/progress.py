"""How far work is: live bars in a terminal, a line now and then in a log file; both on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from collectionlora.command_line.terminal import console, tell, write_duration
from collectionlora.system import progress

LINE_EVERY = 30.0  # seconds between the lines of a log file
WIDE = 100  # columns from which the losses have a place beside count, rate and time left


class Bars:
    """A live line for each piece of work: bar, done, in all, rate, time left; losses where there is room."""

    def __init__(self, shown_on: Console) -> None:
        columns = [
            TextColumn("{task.description}", table_column=_one_line(max_width=24)),
            BarColumn(bar_width=None, table_column=Column(min_width=8, max_width=40)),
            MofNCompleteColumn(table_column=_one_line()),
            TextColumn("{task.fields[rate]}", table_column=_one_line()),
            TimeRemainingColumn(table_column=_one_line()),
        ]
        if shown_on.width >= WIDE:
            columns.append(TextColumn("{task.fields[metrics]}", table_column=_one_line(ratio=1)))
        self.bars = Progress(*columns, console=shown_on, expand=True)
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int, metrics: dict[str, float]) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total, completed=done, metrics="", rate="")
        task = self.tasks[what]
        if done < self.bars.tasks[task].completed:  # the next piece of work under this name
            self.bars.reset(task)
        speed = self.bars.tasks[task].speed
        rate = f"{speed:.2f}/s" if speed else ""
        self.bars.update(task, completed=done, total=total, metrics=write_metrics(metrics), rate=rate)


def _one_line(max_width: int | None = None, ratio: int | None = None) -> Column:
    return Column(no_wrap=True, overflow="ellipsis", max_width=max_width, ratio=ratio)


@dataclass
class Lines:
    """A line for each piece of work every `LINE_EVERY` seconds, and one when it is done."""

    write: Callable[[str], None] = tell
    clock: Callable[[], float] = time.monotonic
    begun: dict[str, tuple[float, int]] = field(default_factory=dict)  # when, and what was done by then
    written: dict[str, float] = field(default_factory=dict)
    reached: dict[str, int] = field(default_factory=dict)

    def __call__(self, what: str, done: int, total: int, metrics: dict[str, float]) -> None:
        now = self.clock()
        if done < self.reached.get(what, 0):  # the next piece of work under this name
            del self.begun[what]
        self.reached[what] = done
        began, first = self.begun.setdefault(what, (now, done))
        if done < total and now - self.written.setdefault(what, now) < LINE_EVERY:
            return
        self.written[what] = now
        parts = [f"{what} {done}/{total}", f"{100 * done / total:.0f} %"]
        if now > began and done > first:
            rate = (done - first) / (now - began)
            left = f"{write_duration((total - done) / rate)} left"
            parts += [f"{rate:.2f}/s", *([left] if done < total else [])]
        self.write(", ".join([*parts, *filter(None, [write_metrics(metrics)])]))


def write_metrics(metrics: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in metrics.items())


@contextmanager
def shown_progress() -> Iterator[progress.Progress]:
    """What work reports to: bars where stderr is a terminal, lines where it is a file or a pipe."""
    try:
        if console.is_terminal:
            bars = Bars(console)
            with bars.bars:
                yield bars
        else:
            yield Lines()
    except KeyboardInterrupt:
        tell("interrupted; what is done is kept: run the same command again to go on")
        raise


@contextmanager
def joined_processes() -> Iterator[progress.Progress]:
    """All processes of the launch; only the main one shows their number, progress and results."""
    from collectionlora.system import processes

    with processes.joined():
        console.quiet = not processes.is_main()
        if (number := processes.world_size()) > 1:
            console.print(f"{number} processes")
        with shown_progress() as show:
            yield show
