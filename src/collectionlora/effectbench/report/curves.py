"""Training logs as curves."""

import filecmp
import json
from pathlib import Path

from collectionlora.collection import Collection
from collectionlora.runs.trainer import LOG

Curve = list[tuple[float, float]]  # (step, value)


def find_logs(collection: Collection) -> dict[str, Path]:
    """The log of the run that made the collection's adapter, and those of the baselines, by name."""
    result, logs = collection.result, {}
    for path in sorted(collection.folder.glob(f"runs/*/{result.name}")):
        if result.exists() and filecmp.cmp(path, result, shallow=False):
            logs[path.parent.name] = path.parent / LOG
    baselines = sorted(collection.folder.glob(f"bench/*/{LOG}"))
    return logs | {path.parent.name: path for path in baselines}


def read_curves(log: Path, max_points: int = 100) -> dict[str, Curve]:
    """Losses by name from a run's log, averaged to at most about `max_points`."""
    raw: dict[str, Curve] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if name not in ("step", "seconds"):
                raw.setdefault(name, []).append((entry["step"], value))
    curves = {}
    for name, points in raw.items():
        size = -(-len(points) // max_points)
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        curves[name] = [(g[-1][0], sum(v for _, v in g) / len(g)) for g in groups]
    return curves
