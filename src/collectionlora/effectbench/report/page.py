"""`report.html`: one self-contained file with a verdict, pictures, tables, curves, costs and settings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from collectionlora.backbones.quantization import describe
from collectionlora.effectbench.gallery import Result, draw_sheet
from collectionlora.effectbench.report.charts import curve_chart
from collectionlora.effectbench.report.columns import COSTS, Column, find_measured, write_value
from collectionlora.effectbench.report.curves import Curve, read_curves
from collectionlora.effectbench.report.embedding import embed_gallery, embed_strip
from collectionlora.effectbench.report.verdict import write_remarks, write_verdict
from collectionlora.pictures.photos import write_photo
from collectionlora.system.files import write_json, write_text

HERE = Path(__file__).parent
BOUNDS = ("source", "truth")  # these are never the best of a column
# Bars of an effect reach from 0 to these values, or to the largest that is there.
FULL = {"psnr": 40.0, "teacher_psnr": 40.0, "vsa": 5.0}


def cells(row: Mapping[str, Any], columns: list[Column], best: Mapping[str, float]) -> list[dict[str, Any]]:
    """The cells of a table row: text, interval, and whether it is the column's best."""
    made = []
    for column in columns:
        value, interval = row.get(column.key), row.get("ci95", {}).get(column.key)
        text = write_value(value, column)
        span = " to ".join(write_value(bound, column) for bound in interval) if interval else ""
        made.append(
            {"text": text, "interval": span, "best": value is not None and best.get(column.key) == value}
        )
    return made


def best_values(methods: Mapping[str, Mapping[str, Any]], columns: list[Column]) -> dict[str, float]:
    """The best value of each column among the contestants; none where there is only one."""
    rows = [row for name, row in methods.items() if name not in BOUNDS]
    best = {}
    for column in columns:
        values = [row[column.key] for row in rows if column.key in row]
        if len(values) > 1:
            best[column.key] = max(values) if column.better > 0 else min(values)
    return best


def table(methods: Mapping[str, Mapping[str, Any]], columns: list[Column]) -> dict[str, Any]:
    """Columns, and for each method its cells."""
    best = best_values(methods, columns)
    bests = {name: {} if name in BOUNDS else best for name in methods}
    return {"columns": columns, "rows": {n: cells(row, columns, bests[n]) for n, row in methods.items()}}


def bars(methods: Mapping[str, Mapping[str, Any]], column: Column) -> dict[str, list[dict[str, Any]]]:
    """By effect, each method's value and interval of one measure, as shares of a full bar.

    The truth is left out: next to its 60 dB all others look alike.
    """
    key, colours = column.key, {name: index for index, name in enumerate(methods)}
    methods = {name: row for name, row in methods.items() if name != "truth"}
    if not methods:
        return {}
    names = list(next(iter(methods.values()))["per_effect"])
    known = [
        row["per_effect"][e][key] for row in methods.values() for e in names if key in row["per_effect"][e]
    ]
    full = max(max(known), min(FULL.get(key, 1.0), 1.5 * max(known))) or 1.0
    chart: dict[str, list[dict[str, Any]]] = {}
    for effect in names:
        chart[effect] = []
        for name, row in methods.items():
            one = row["per_effect"][effect]
            if key not in one:
                continue
            low, high = one["ci95"].get(key, (one[key], one[key]))
            share = [f"{100 * min(max(v, 0) / full, 1):.1f}%" for v in (one[key], low, high)]
            chart[effect].append(
                {
                    "method": name,
                    "colour": colours[name],
                    "text": write_value(one[key], column),
                    "share": share,
                }
            )
    return {effect: rows for effect, rows in chart.items() if rows}


def confusion(metrics: Mapping[str, Any]) -> dict[str, list[tuple[str, list[tuple[int, float]]]]]:
    """By method, each effect's counts over the classifier's classes, with their shares."""
    if "classifier" not in metrics:
        return {}
    effects = metrics["classifier"]["classes"][:-1]
    return {
        name: [
            (effect, [(count, count / sum(counts)) for count in counts])
            for effect, counts in zip(effects, row["confusion"], strict=True)
        ]
        for name, row in metrics["methods"].items()
    }


def draw_curves(logs: Mapping[str, Path], methods: Sequence[str]) -> dict[str, Any]:
    """Each logged value as one chart in which the runs lie over each other, and a colour for each run.

    A run that is one of the methods has the method's colour.
    """
    others = iter(range(len(methods), len(methods) + len(logs)))
    colours = {run: methods.index(run) if run in methods else next(others) for run in logs}
    values: dict[str, dict[str, Curve]] = {}
    for run, log in logs.items():
        for name, points in read_curves(log).items():
            if len(points) > 1:
                values.setdefault(name, {})[run] = points
    charts = {name: curve_chart(lines, colours) for name, lines in values.items()}
    return {"colours": colours, "charts": charts}


def build_report(result: Result, logs: Mapping[str, Path]) -> str:
    """The page; `logs` are training logs by run."""
    metrics, methods = result.metrics, result.metrics["methods"]
    columns = find_measured(methods.values())
    # What is measured effect by effect; the ordinary edits belong to none.
    by_effect = find_measured(row for method in methods.values() for row in method["per_effect"].values())
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    gallery: dict[str, list[dict[str, str]]] = {}
    for shown, urls in embed_gallery(result.gallery):
        gallery.setdefault(shown.effect, []).append(urls)
    return environment.get_template("page.html").render(
        metrics=metrics,
        methods=list(methods),
        verdict=write_verdict(methods),
        remarks=write_remarks(methods),
        scores=table(methods, columns),
        costs=table(methods, list(COSTS)),
        bars=[(column, chart) for column in by_effect if (chart := bars(methods, column))],
        gallery=gallery,
        strips={effect: embed_strip(photos) for effect, photos in result.strips.items()},
        confusion=confusion(metrics),
        curves=draw_curves(logs, list(methods)),
        describe=describe,
        settings=json.dumps(metrics["settings"], indent=1),
        versions=metrics["versions"],
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        script=(HERE / "script.js").read_text(encoding="utf-8"),
    )


def write_results(out: Path, result: Result, logs: Mapping[str, Path]) -> None:
    """metrics.json, sheet.png and report.html in `out`; `logs` are training logs by run."""
    write_json(out / "metrics.json", result.metrics)
    write_photo(out / "sheet.png", draw_sheet(result.gallery))
    write_text(out / "report.html", build_report(result, logs))
