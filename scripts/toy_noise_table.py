"""The table of docs/few-steps.md: python scripts/toy_noise_table.py docs/results/toy_noise.json

Means over seeds of the energy distance to the teachers, for both samplers at 8, 4, 2 and 1 steps.
"""

import sys
from pathlib import Path
from statistics import fmean

from toy_table import Rows, Table

HEAD = "| student | seeds | Euler 8 / 4 / 2 / 1 | stochastic 8 / 4 / 2 / 1 | CPU s |"


def markdown(rows: Rows) -> str:
    """One line for each student that every sampler has judged at every number of steps."""
    students = dict.fromkeys(row["student"] for row in rows)
    return "\n".join([HEAD, "|---" * 5 + "|", *(_line(student, rows) for student in students)])


def _line(student: str, rows: Rows) -> str:
    own = [row for row in rows if row["student"] == student]

    def cell(sampler: str) -> str:
        means = (
            fmean(row["effects_mean"] for row in own if (row["sampler"], row["steps"]) == (sampler, steps))
            for steps in (8, 4, 2, 1)
        )
        return " / ".join(f"{mean:.4f}".removeprefix("0") for mean in means)

    seeds, seconds = len({row["seed"] for row in own}), fmean(row["seconds"] for row in own)
    return f"| {student} | {seeds} | {cell('euler')} | {cell('stochastic')} | {seconds:.0f} |"


if __name__ == "__main__":
    print(markdown(Table(Path(sys.argv[1])).rows))
