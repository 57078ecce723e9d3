"""Words that a visitor knows, in place of the names that files and prompts have."""

from pathlib import Path

from collectionlora.adapters.recipe import SHIPPED, adapter_path

SHIPPED_TITLE = "Photo effects"


def human_name(name: str) -> str:
    """`pencil-sketch` as "Pencil sketch"."""
    words = name.replace("-", " ").replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def title_of(place: Path) -> str:
    """What a collection's page is called: after its folder or file, where it is not the one that ships."""
    return SHIPPED_TITLE if adapter_path(place) == SHIPPED else human_name(place.resolve().stem)


def describe_seconds(seconds: float) -> str:
    """`95.2` as "1 min 35 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
