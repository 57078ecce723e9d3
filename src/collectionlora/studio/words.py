"""Words that a visitor knows, in place of the names that files and prompts have."""

import re
from pathlib import Path

from collectionlora.adapters.recipe import SHIPPED, adapter_path

SHIPPED_TITLE = "Photo effects"
ABBREVIATIONS = ("ascii", "crt", "led", "rgb", "vhs")


def write_words(name: str) -> str:
    """`pencil-sketch` as "pencil sketch", `x-ray` as "x-ray", `rgb-shift` as "RGB shift"."""
    words = re.sub(r"(?<!\b[A-Za-z])[-_]", " ", name).split()
    return " ".join(word.upper() if word in ABBREVIATIONS else word for word in words)


def human_name(name: str) -> str:
    """The same with a capital at its beginning: "Pencil sketch"."""
    words = write_words(name)
    return words[:1].upper() + words[1:]


def title_of(place: Path) -> str:
    """What a collection's page is called: after its folder or file, where it is not the one that ships."""
    return SHIPPED_TITLE if adapter_path(place) == SHIPPED else human_name(place.resolve().stem)


def describe_seconds(seconds: float) -> str:
    """`95.2` as "1 min 35 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
