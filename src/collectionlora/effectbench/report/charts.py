"""Line charts as SVG."""

from collections.abc import Sequence

Curve = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 320, 90


def sparkline(points: Curve) -> str:
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
