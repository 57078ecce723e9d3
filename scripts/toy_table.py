"""The rows of a study in a JSON file, so that it goes on where it was stopped.

`python scripts/toy_table.py docs/results/toy_world.json` prints the table of docs/toy.md.
"""

import argparse
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from collectionlora.system.files import write_json

Rows = list[dict[str, Any]]


class Table:
    """Rows in a JSON file, each known by what it was asked with."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: Rows = json.loads(path.read_text())["rows"] if path.exists() else []

    def has(self, **asked: Any) -> bool:
        return any(asked.items() <= row.items() for row in self.rows)

    def add(self, asked: dict[str, Any], result: dict[str, float]) -> None:
        """One more row, on disk when this returns."""
        self.rows.append({**asked, **{key: round(value, 4) for key, value in result.items()}})
        write_json(self.path, {"torch": torch.__version__, "rows": self.rows})
        print(self.rows[-1], flush=True)


def study_parser(description: str | None, out: str, names: Collection[str]) -> argparse.ArgumentParser:
    """The options of a study: its file, some of its rows by name, and how many seeds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--only", nargs="*", choices=list(names), default=list(names))
    parser.add_argument("--seeds", type=int, default=5)
    return parser


HEAD = "| variant | steps | effects, mean | worst effect | general |"


def markdown(rows: Rows) -> str:
    """The table of docs/toy.md: a variant at all its steps; means over seeds, for the worst the largest."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    return "\n".join([HEAD, "|---" * 5 + "|", *(_line(name, rows) for name in variants)])


def _line(name: str, rows: Rows) -> str:
    of_variant = [row for row in rows if row["variant"] == name]
    lengths = list(dict.fromkeys(row["steps"] for row in of_variant))

    def cell(key: str, over_seeds: Callable[[list[float]], float]) -> str:
        found = [[row[key] for row in of_variant if row["steps"] == n and key in row] for n in lengths]
        return " / ".join(f"{over_seeds(values):.3f}".removeprefix("0") for values in found if values)

    steps = " / ".join(str(n) for n in lengths)
    means = cell("effects_mean", fmean), cell("effects_worst", max), cell("general", fmean)
    return f"| {' | '.join((name, steps, *means))} |"


if __name__ == "__main__":
    print(markdown(Table(Path(sys.argv[1])).rows))
