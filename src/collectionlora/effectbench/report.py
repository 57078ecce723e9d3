"""`report.html`: one self-contained file with the table, the pictures and the training curves."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from collectionlora.data import Photo, write_photo
from collectionlora.effectbench.gallery import Result, draw_sheet
from collectionlora.files import write_json, write_text

STYLE = """
:root{color-scheme:light dark;--line:#8884;--accent:#2b6cb0}
body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;margin:1rem 0}
th,td{text-align:right;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}
img{max-width:100%;height:auto;image-rendering:pixelated}
svg{width:100%;height:auto;border:1px solid var(--line)}
.wide{overflow-x:auto}
code{background:#8882;padding:.1rem .3rem;border-radius:3px}
"""
COLUMNS = ("nfe", "psnr", "ssim", "concept_accuracy", "bad_case_rate", "bleed", "coverage", "general_psnr")


def read_curves(log: Path, most_points: int = 100) -> dict[str, list[tuple[int, float]]]:
    """Losses by name from a run's log, averaged to at most about `most_points`: (step, value) points."""
    raw: dict[str, list[tuple[int, float]]] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if name not in ("step", "seconds"):
                raw.setdefault(name, []).append((entry["step"], value))
    curves = {}
    for name, points in raw.items():
        size = -(-len(points) // most_points)
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        curves[name] = [(g[-1][0], sum(v for _, v in g) / len(g)) for g in groups]
    return curves


def draw_curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    """One curve as inline SVG, its range written beside it."""
    width, height = 480, 120
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    span, reach = (high - low) or 1.0, max(steps) or 1
    path = " ".join(f"{s / reach * width:.1f},{(high - v) / span * (height - 10) + 5:.1f}" for s, v in points)
    title = f"{html.escape(name)}: {values[0]:.3g} to {values[-1]:.3g} over {reach} steps"
    line = f'<polyline fill="none" stroke="var(--accent)" stroke-width="1.5" points="{path}"/>'
    return (
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {width} {height}">{line}</svg></figure>'
    )


def embed(photo: Photo) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def rows_of(methods: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{column.replace('_', ' ')}</th>" for column in COLUMNS)
    body = ""
    for name, row in methods.items():
        cells = "".join(
            f"<td>{row[c]:.3g}</td>" if c != "psnr" else f"<td>{row[c]:.2f}</td>" for c in COLUMNS
        )
        body += f"<tr><td>{html.escape(name)}</td>{cells}</tr>"
    return f"<table><tr><th>method</th>{head}</tr>{body}</table>"


def effect_rows(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """PSNR of every method by effect."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in methods)
    effects = next(iter(methods.values()))["per_effect"]
    body = ""
    for effect in effects:
        cells = "".join(f"<td>{row['per_effect'][effect]['psnr']:.2f}</td>" for row in methods.values())
        body += f"<tr><td>{html.escape(effect)}</td>{cells}</tr>"
    return f"<table><tr><th>PSNR, dB</th>{head}</tr>{body}</table>"


def build_report(
    metrics: Mapping[str, Any], sheet: Photo, curves: Mapping[str, Sequence[tuple[int, float]]]
) -> str:
    """The page; `metrics` is the content of metrics.json."""
    drawn = "".join(draw_curve(name, points) for name, points in curves.items() if len(points) > 1)
    settings = html.escape(json.dumps(metrics["settings"], indent=1))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>collectionlora report</title><style>{STYLE}</style>
<h1>One LoRA for {len(metrics["effects"])} effects</h1>
<p>{metrics["photos"]} held-out photographs for each effect; {metrics["seconds"]:.0f} seconds in all.
PSNR and SSIM are to the nearest valid outcome.</p>
<div class="wide">{rows_of(metrics["methods"])}{effect_rows(metrics["methods"])}</div>
<h2>Pictures</h2><div class="wide"><img alt="source, truth, teacher and student" src="{embed(sheet)}"></div>
<h2>Training</h2>{drawn}
<h2>Settings</h2><details><summary>all settings and versions</summary><pre>{settings}
{html.escape(json.dumps(metrics["versions"], indent=1))}</pre></details></html>
"""


def write_results(out: Path, result: Result, log: Path | None = None) -> None:
    """sheet.png, report.html and metrics.json in `out`; `log` is the training run's, if there is one."""
    sheet = draw_sheet(result.gallery)
    write_photo(out / "sheet.png", sheet)
    curves = read_curves(log) if log else {}
    write_text(out / "report.html", build_report(result.metrics, sheet, curves))
    write_json(out / "metrics.json", result.metrics)
