"""Draw what toy_world.py and toy_scaling.py measured: python scripts/toy_plots.py [--results docs/results]

Writes toy_ablation.svg, toy_scaling.svg, toy_far.svg and toy_pull.svg beside their JSON; a line is the mean
over seeds, its band reaches from the smallest to the largest.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collectionlora.effectbench.report.charts import Band, bar_chart, line_chart
from collectionlora.system.files import write_text
from collectionlora.toy.studies import USUAL_EFFECTS, mean_and_range

Rows = list[dict[str, Any]]


def read_rows(path: Path) -> Rows:
    rows: Rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def curve(rows: Rows, x: str, y: str) -> list[Band]:
    """Points in order of `x`, each with the range of `y` over seeds."""
    return [
        (v, *mean_and_range([row for row in rows if row[x] == v], y))
        for v in sorted({row[x] for row in rows})
    ]


def draw_ablation(rows: Rows) -> str:
    """The mean distance of every variant at the student's 8 steps."""
    shown = [row for row in rows if row["steps"] == 8]
    names: Sequence[str] = list(dict.fromkeys(row["variant"] for row in shown))
    bars = [
        (name, *mean_and_range([r for r in shown if r["variant"] == name], "effects_mean")) for name in names
    ]
    return bar_chart("energy distance to the teachers at 8 steps, mean over effects; 0 is perfect", bars)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    folder = parser.parse_args().results
    if ablation := read_rows(folder / "toy_world.json"):
        write_text(folder / "toy_ablation.svg", draw_ablation(ablation))
    rows = read_rows(folder / "toy_scaling.json")
    if scaling := [row for row in rows if row["study"] == "scaling"]:
        labels = {"effects_mean": "student, mean", "effects_worst": "student, worst effect"}
        labels |= {"undistilled": "teachers in as few steps", "general": "student, general stream"}
        in_all = [row for row in scaling if not row["per_effect"]]
        for_each = [row for row in scaling if row["per_effect"] or row["effects"] == USUAL_EFFECTS]
        lines = {label: curve(in_all, "effects", key) for key, label in labels.items()}
        lines["student, mean, as many updates for each effect"] = curve(for_each, "effects", "effects_mean")
        chart = line_chart("teachers in one student", "energy distance at 8 steps", lines, log_x=True)
        write_text(folder / "toy_scaling.svg", chart)
    if far := [row for row in rows if row["study"] == "far"]:
        by_objective = {
            o: [row for row in far if row["objective"] == o] for o in {r["objective"]: 0 for r in far}
        }
        lines = {
            objective: curve(some, "updates", "effects_mean") for objective, some in by_objective.items()
        }
        chart = line_chart("student updates", "energy distance at 8 steps", lines)
        write_text(folder / "toy_far.svg", chart)
        labels = {"backward": "on the student's own samples", "target": "on target simulation"}
        pulls = {label: curve(by_objective["plain"], "updates", key) for key, label in labels.items()}
        chart = line_chart("student updates, plain", "share of the way that the gradient pulls", pulls)
        write_text(folder / "toy_pull.svg", chart)


if __name__ == "__main__":
    main()
