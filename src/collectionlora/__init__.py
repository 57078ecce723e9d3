"""Distil many effect LoRAs and few-step generation into one LoRA (CollectionLoRA, arXiv 2605.25378)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from collectionlora.system.version import __version__

if TYPE_CHECKING:
    from collectionlora.collection import Collection
    from collectionlora.editing import Editor, edit
    from collectionlora.effectbench.benching import bench
    from collectionlora.exporting.export import export
    from collectionlora.planning.plan import plan
    from collectionlora.runs.verbs import add, distill, prompts, remove, targets, teach

__all__ = [
    "Collection",
    "Editor",
    "__version__",
    "add",
    "bench",
    "distill",
    "edit",
    "export",
    "plan",
    "prompts",
    "remove",
    "targets",
    "teach",
]
# Imported on first use: torch takes seconds, `collectionlora --help` must not.
HOMES = {
    "Collection": "collection",
    "Editor": "editing",
    "edit": "editing",
    "bench": "effectbench.benching",
    "export": "exporting.export",
    "plan": "planning.plan",
    **dict.fromkeys(["add", "distill", "prompts", "remove", "targets", "teach"], "runs.verbs"),
}
# They load a base, and look first whether there is room for it.
GUARDED = ("add", "bench", "distill", "edit", "prompts", "targets", "teach")


def __getattr__(name: str) -> Any:
    if name in HOMES:
        found = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
        if name not in GUARDED:
            return found
        from collectionlora.planning.guard import guarded

        return guarded(name, found)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
