"""Charts as SVG: training curves inside a page, and line and bar charts that stand alone."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape

Band = tuple[float, float, float, float]  # x, then y with its lower and upper bound
CURVE_WIDTH, CURVE_HEIGHT, CURVE_LEFT, CURVE_BOTTOM = 400, 220, 66, 24
COLOURS = ("#2f7fc4", "#d9731a", "#3d9a66", "#b7529b", "#8a6fd0")
# Greys that are read on white and on black.
FRAME = """<style>text{font:13px system-ui,sans-serif;fill:#7a828a}line{stroke:#8a929a;stroke-opacity:.35}
polyline{fill:none;stroke-width:2}polygon{fill-opacity:.18}</style>"""
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 44


def curve_chart(lines: Mapping[str, Sequence[tuple[float, float]]], colours: Mapping[str, int]) -> str:
    """Named curves over the training step in one frame with axes, for a page with a style of its own.

    `colours` are classes by name (`c0` and so on). The points stand in `data-points` for the page's script,
    as [x, y, step, value] with x and y in the units of the drawing.
    """
    points = [point for line in lines.values() for point in line]
    ticks = value_ticks([value for _, value in points])
    last = max(step for step, _ in points)
    across, down = CURVE_WIDTH - CURVE_LEFT - 8, CURVE_HEIGHT - CURVE_BOTTOM - 8

    def place(step: float, value: float) -> tuple[float, float]:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        x, y = CURVE_LEFT + step / (last or 1) * across, CURVE_HEIGHT - CURVE_BOTTOM - share * down
        return round(x, 1), round(y, 1)

    parts = [f'<svg viewBox="0 0 {CURVE_WIDTH} {CURVE_HEIGHT}" role="img" aria-label="{describe(lines)}">']
    for tick in ticks:
        _, y = place(0, tick)
        parts.append(f'<line x1="{CURVE_LEFT}" y1="{y}" x2="{CURVE_WIDTH - 8}" y2="{y}"/>')
        parts.append(f'<text x="{CURVE_LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:.4g}</text>')
    for tick in round_steps(last, 4):
        if tick <= 0.9 * last:
            x, _ = place(tick, ticks[0])
            parts.append(f'<text x="{x}" y="{CURVE_HEIGHT - 6}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{CURVE_WIDTH - 8}" y="{CURVE_HEIGHT - 6}" text-anchor="end">step {last:g}</text>')
    for name, line in lines.items():
        placed = [(*place(step, value), step, float(f"{value:.4g}")) for step, value in line]
        path = " ".join(f"{x},{y}" for x, y, *_ in placed)
        parts.append(
            f'<polyline class="c{colours[name] % 10}" points="{path}" data-name="{escape(name)}" '
            f'data-points="{escape(json.dumps(placed))}"/>'
        )
    parts.append(f'<line class="cursor" y1="8" y2="{CURVE_HEIGHT - CURVE_BOTTOM}" hidden/>')
    return "".join(parts) + "</svg>"


def describe(lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """The ends of curves in words."""
    ends = [f"{name} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for name, line in lines.items()]
    return escape("over the training step: " + ", ".join(ends))


def value_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers that enclose the values; they begin at 0 where that wastes at most half of the height."""
    low, high = min(values), max(values)
    if 0 <= low <= high / 2:
        low = 0.0
    step = round_steps((high - low) or abs(high) or 1.0, 4)[1]
    first = math.floor(low / step + 1e-9)
    return [step * i for i in range(first, max(math.ceil(high / step - 1e-9), first + 1) + 1)]


def round_steps(largest: float, most: int = 6) -> list[float]:
    """Round numbers from 0 to at least `largest`: the ticks of an axis."""
    rough = largest / (most - 1) or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * s for s in (1, 2, 2.5, 5, 10) if power * s >= rough * 0.999)
    return [step * i for i in range(math.ceil(largest / step * 0.999) + 1)]


def line_chart(x_label: str, y_label: str, lines: Mapping[str, Sequence[Band]], log_x: bool = False) -> str:
    """Named lines with their bands, y from 0; a document of its own."""
    width, height, legend = 640, 360, 20 * len(lines)
    points = [point for line in lines.values() for point in line]
    ticks = round_steps(max(high for *_, high in points))
    place = math.log if log_x else float
    xs = sorted({x for x, *_ in points})
    first, reach = place(xs[0]), (place(xs[-1]) - place(xs[0])) or 1.0

    def at(x: float, y: float) -> str:
        across = LEFT + (place(x) - first) / reach * (width - LEFT - RIGHT)
        down = height - BOTTOM - max(y, 0) / ticks[-1] * (height - BOTTOM - TOP)
        return f"{across:.1f},{down:.1f}"

    parts = []
    for tick in ticks:
        y = at(xs[0], tick).split(",")[1]
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{width - RIGHT}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4}" text-anchor="end">{tick:g}</text>')
    for x in xs:
        across = at(x, 0).split(",")[0]
        parts.append(f'<text x="{across}" y="{height - BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    middle = (TOP + height - BOTTOM) / 2
    turn = f'transform="rotate(-90 14 {middle})" text-anchor="middle"'
    parts.append(f'<text x="14" y="{middle}" {turn}>{escape(y_label)}</text>')
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        band = [at(x, high) for x, _, _, high in line] + [at(x, low) for x, _, low, _ in reversed(line)]
        parts.append(f'<polygon points="{" ".join(band)}" fill="{colour}"/>')
        parts.append(f'<polyline points="{" ".join(at(x, y) for x, y, *_ in line)}" stroke="{colour}"/>')
        down = height + 14 + 20 * i
        parts.append(f'<line x1="{LEFT}" y1="{down - 4}" x2="{LEFT + 24}" y2="{down - 4}" ')
        parts[-1] += f'style="stroke:{colour};stroke-opacity:1;stroke-width:3"/>'
        parts.append(f'<text x="{LEFT + 32}" y="{down}">{escape(name)}</text>')
    return document(width, height + legend, parts)


def bar_chart(title: str, bars: Sequence[tuple[str, float, float, float]]) -> str:
    """Named values with their ranges as bars from 0; a document of its own."""
    width, label, row = 640, 230, 22
    largest = max(high for *_, high in bars) or 1.0
    parts = [f'<text x="4" y="16">{escape(title)}</text>']
    for i, (name, value, low, high) in enumerate(bars):
        down = 30 + row * i
        start, middle, end = (label + v / largest * (width - label - 70) for v in (low, value, high))
        parts.append(f'<text x="{label - 8}" y="{down + 12}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="{label}" y="{down}" width="{middle - label:.1f}" height="15" fill="{COLOURS[0]}"/>'
        )
        parts.append(f'<line x1="{start:.1f}" y1="{down + 7.5}" x2="{end:.1f}" y2="{down + 7.5}" ')
        parts[-1] += 'style="stroke:#7a828a;stroke-opacity:1;stroke-width:2"/>'
        parts.append(f'<text x="{end + 6:.1f}" y="{down + 12}">{value:.3f}</text>')
    return document(width, 36 + row * len(bars), parts)


def document(width: int, height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">'
    return head + FRAME + "\n".join(parts) + "</svg>\n"
