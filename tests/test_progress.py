"""What a terminal and a log file show of long work."""

import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from collectionlora.command_line.progress import Bars, Lines, write_duration

METRICS = {"backward": 1.86, "target": 2.12, "student_grad_norm": 0.904, "critic": 0.0153}


@pytest.mark.parametrize(("width", "with_losses"), [(80, False), (130, True)])
def test_a_bar_keeps_count_rate_and_time_left(width, with_losses):
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    bars = Bars(console)
    clock = iter(range(1000))
    bars.bars.get_time = lambda: float(next(clock))
    for done in (0, 60, 90, 120):
        bars("distill a-collection-with-a-long-name", done, 1200, METRICS)
    with console.capture() as captured:
        console.print(bars.bars.get_renderable())
    [line] = Text.from_ansi(captured.get().rstrip()).plain.splitlines()
    assert len(line) <= width
    assert "120/1200" in line
    assert "/s " in line
    assert re.search(r" \d:\d\d:\d\d", line)
    assert ("backward 1.86" in line) == with_losses


def test_a_log_file_gets_a_line_every_thirty_seconds_and_at_the_end():
    seconds, written = [0.0], []
    lines = Lines(written.append, lambda: seconds[0])
    for done in range(40, 121):  # a run that goes on from step 40, two seconds a step
        lines("distill", done, 120, {"match": 0.03})
        seconds[0] += 2
    assert written == [
        "distill 55/120, 46 %, 0.50/s, 2 min left, match 0.03",
        "distill 70/120, 58 %, 0.50/s, 2 min left, match 0.03",
        "distill 85/120, 71 %, 0.50/s, 70 s left, match 0.03",
        "distill 100/120, 83 %, 0.50/s, 40 s left, match 0.03",
        "distill 115/120, 96 %, 0.50/s, 10 s left, match 0.03",
        "distill 120/120, 100 %, 0.50/s, match 0.03",
    ]


def test_the_next_piece_of_work_under_a_name_has_a_rate_of_its_own():
    seconds, written = [0.0], []
    lines = Lines(written.append, lambda: seconds[0])
    for done in (*range(1, 31), *range(1, 61)):  # a run, then one that is twice as fast
        lines("distill", done, 60, {})
        seconds[0] += 2 if seconds[0] < 60 else 1
    assert written[-2:] == ["distill 31/60, 52 %, 1.00/s, 29 s left", "distill 60/60, 100 %, 1.00/s"]

    bars = Bars(Console(file=io.StringIO(), width=130, force_terminal=True))
    clock = [0.0]
    bars.bars.get_time = lambda: clock[0]
    for done in (*range(0, 60, 6), *range(0, 60, 6)):
        clock[0] += 10 if done else 1000
        bars("distill", done, 60, {})
    assert bars.bars.tasks[0].completed == 54
    assert bars.bars.tasks[0].speed == pytest.approx(0.6)


def test_short_work_is_one_line_when_it_is_done():
    written = []
    lines = Lines(written.append, lambda: 7.0)
    for done in (1, 2, 3):
        lines("encode sketch", done, 3, {})
    assert written == ["encode sketch 3/3, 100 %"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (720, "12 min"), (11_100, "3 h 05 min")]
)
def test_durations_are_in_units_that_people_use(seconds, text):
    assert write_duration(seconds) == text
