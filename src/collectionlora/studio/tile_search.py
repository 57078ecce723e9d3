"""The row over the tiles that finds effects among many: by words, and by kind where kinds are known."""

import html
import json
from collections.abc import Sequence

from collectionlora.effects import THEMES
from collectionlora.studio.words import human_name

OTHER = "Other"


def group_by_kind(names: Sequence[str]) -> dict[str, list[str]]:
    """Effects by the theme of the procedural effect of this name; all others, if there are some, together."""
    groups: dict[str, list[str]] = {}
    for theme, effects in THEMES.items():
        known = {one.name for effect in effects for one in (effect, *effect.variants())}
        groups[theme] = [name for name in names if name in known]
    found = {name for group in groups.values() for name in group}
    groups[OTHER] = [name for name in names if name not in found]
    return {kind: group for kind, group in groups.items() if group}


def write_search(names: Sequence[str]) -> str:
    """The row as HTML; it calls functions of page.js."""
    search = (
        '<input type="search" placeholder="Search effects" aria-label="Search effects" '
        'oninput="searchEffects(this.value)">'
    )
    groups = group_by_kind(names)
    if len(groups) == 1:
        return search
    options = "".join(
        f'<option value="{html.escape(json.dumps([human_name(name) for name in group]))}">{kind}</option>'
        for kind, group in groups.items()
    )
    return (
        f'{search}<select aria-label="Kind of effect" onchange="chooseKind(JSON.parse(this.value))">'
        f'<option value="[]">All kinds</option>{options}</select>'
    )
