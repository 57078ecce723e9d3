"""Distil many effect LoRAs and few-step generation into one LoRA (CollectionLoRA, arXiv 2605.25378)."""

from typing import TYPE_CHECKING, Any

from collectionlora.system.version import __version__

if TYPE_CHECKING:
    from collectionlora.api import (
        Editor,
        add,
        bench,
        distill,
        edit,
        export,
        plan,
        prompts,
        remove,
        targets,
        teach,
    )
    from collectionlora.collection import Collection

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


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, `collectionlora --help` must not."""
    if name == "Collection":
        from collectionlora.collection import Collection

        return Collection
    if name in __all__:
        from collectionlora import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
