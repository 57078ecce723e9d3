"""Training logs as curves."""

import filecmp
import json
from collections.abc import Sequence
from pathlib import Path

from collectionlora.collection import Collection
from collectionlora.runs.trainer import LOG

Curve = list[tuple[float, float]]  # (step, value)


def find_logs(collection: Collection, methods: Sequence[str] = ()) -> dict[str, Path]:
    """Logs of the run that made the adapter, of runs among the methods, and of the baselines, by name."""
    result, runs = collection.result, collection.folder / "runs"
    logs = {
        path.parent.name: path.parent / LOG
        for path in sorted(runs.glob(f"*/{result.name}"))
        if path.parent.name in methods or (result.exists() and filecmp.cmp(path, result, shallow=False))
    }
    baselines = sorted(collection.folder.glob(f"bench/*/{LOG}"))
    logs |= {path.parent.name: path for path in baselines}
    return {name: log for name, log in logs.items() if log.exists()}


def read_curves(log: Path, max_points: int = 100) -> dict[str, Curve]:
    """Losses by name from a run's log, averaged to at most about `max_points`.

    A process that was killed leaves half a line at the end.
    """
    raw: dict[str, Curve] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        for name, value in entry.items():
            if name not in ("step", "seconds"):
                raw.setdefault(name, []).append((entry["step"], value))
    curves = {}
    for name, points in raw.items():
        size = -(-len(points) // max_points)
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        curves[name] = [(g[-1][0], sum(v for _, v in g) / len(g)) for g in groups]
    return curves
