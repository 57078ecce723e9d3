"""How work tells whoever shows it how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int, dict[str, float]], None]  # (what, done, in all, metrics)


def ignore(_what: str, _done: int, _total: int, _metrics: dict[str, float]) -> None:
    """No progress shown."""
