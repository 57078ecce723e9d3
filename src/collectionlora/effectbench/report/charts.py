"""Charts as SVG: sparklines inside a page, and line and bar charts that stand alone."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Band = tuple[float, float, float, float]  # x, then y with its lower and upper bound
WIDTH, HEIGHT = 320, 90
COLOURS = ("#2f7fc4", "#d9731a", "#3d9a66", "#b7529b", "#8a6fd0")
# Greys that are read on white and on black.
FRAME = """<style>text{font:13px system-ui,sans-serif;fill:#7a828a}line{stroke:#8a929a;stroke-opacity:.35}
polyline{fill:none;stroke-width:2}polygon{fill-opacity:.18}</style>"""
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 44


def sparkline(points: Sequence[tuple[float, float]]) -> str:
    """One curve that fills its box; its numbers are written beside it as text."""
    steps, values = zip(*points, strict=True)
    low, span = min(values), (max(values) - min(values)) or 1.0
    first, reach = steps[0], (steps[-1] - steps[0]) or 1.0
    path = " ".join(
        f"{(s - first) / reach * WIDTH:.1f},{HEIGHT - 4 - (v - low) / span * (HEIGHT - 8):.1f}"
        for s, v in points
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="curve">'
        f'<polyline points="{path}"/></svg>'
    )


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
