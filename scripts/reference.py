"""The reference pages of the commands and of the settings: printed, or with `--write` put into `docs/`."""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click

from collectionlora.command_line.verbs import GROUPS, HELP, app
from collectionlora.config import PAPER, Schedule, Settings

DOCS = Path(__file__).parents[1] / "docs"
MAX_SHOWN = 2**62  # a larger bound is that of the type
NOTE = "<!-- made by scripts/reference.py: change the {} and run it with --write -->\n\n"
COMMANDS = """\
# Commands

{help}

`collectionlora COMMAND --help` prints the same as this page. Text and progress go to stderr. `--json` prints
one JSON object to stdout. The exit code is 0 for success, 2 for a mistake that you can correct, 1 for a fault
of the program, and 130 after Ctrl-C.
"""
SETTINGS = """\
# Settings

Every setting can stand in `collection.yaml` under `settings:`. For one command, give it as
`--set section.name=value`. `collectionlora settings FOLDER` prints the values that a run would use, and
where each one comes from. The recommendations of a base lie over the defaults: large bases have a rank of
128 and a resolution of 1,024, for example.

A loss weight is one number, or a mapping with `start` and `end` that is linear between them. The column
*paper* shows the values of `--recipe paper` that are not the default.
"""


def write_commands() -> str:
    """Every command in the groups of `--help`, by typer's own documentation of a command."""
    group = typer.main.get_command(app)
    context = typer.Context(group)
    parts = [COMMANDS.format(help=HELP)]
    for title, verbs in GROUPS.items():
        parts.append(f"## {title}\n")
        for verb in verbs:
            command = group.get_command(context, verb.__name__)  # type: ignore[attr-defined]
            text = get_docs_for_click(obj=command, ctx=context, indent=2, call_prefix="collectionlora")
            parts.append(indent_examples(text).rstrip() + "\n")
    return NOTE.format("command") + "\n".join(parts)


def indent_examples(text: str) -> str:
    """Each example of a command as a block of code."""
    return re.sub(r"^Example: (.*)$", r"    \1", text, flags=re.MULTILINE)


def write_settings() -> str:
    """A table for each section: name, values, default, the paper's value and description."""
    parts = [SETTINGS]
    for name, section in Settings.model_fields.items():
        model = type(section.default)
        parts.append(f"## {name}\n\n{(model.__doc__ or '').strip()}\n")
        parts.append("| setting | values | default | paper | what it is |\n|---|---|---|---|---|")
        rows = (write_row(name, one, field, PAPER.get(name, {})) for one, field in model.model_fields.items())
        parts[-1] += "".join(rows) + "\n"
    return NOTE.format("description in config.py") + "\n".join(parts)


def write_row(section: str, name: str, field: FieldInfo, paper: Mapping[str, Any]) -> str:
    default, other = write_value(field.default), write_value(paper[name]) if name in paper else ""
    changed = "" if other == default else other
    cells = [f"`{section}.{name}`", describe_values(field), default, changed, field.description or ""]
    return "\n| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_value(value: Any) -> str:
    """A value as a reader writes it into the manifest."""
    if isinstance(value, Schedule):
        return f"{value.start:g}" if value.start == value.end else f"{value.start:g} to {value.end:g}"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_values(field: FieldInfo) -> str:
    """The type of a setting and its range."""
    kind = field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    words = {int: "integer", float: "number", bool: "yes or no", str: "text", Schedule: "number or schedule"}
    kinds = [one for one in get_args(kind) or [kind] if one in words] or [int]
    listed = "list of " if get_origin(kind) is tuple else ""
    return listed + " or ".join(words[one] for one in kinds) + write_bounds(field.metadata)


def write_bounds(metadata: Iterable[Any]) -> str:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [
        f"{signs[key]} {bound:g}"
        for one in metadata
        if is_dataclass(one) and not isinstance(one, type)
        for key, bound in asdict(one).items()
        if key in signs and bound < MAX_SHOWN
    ]
    return f", {' and '.join(found)}" if found else ""


PAGES = {"commands.md": write_commands, "settings.md": write_settings}

if __name__ == "__main__":
    for name, write in PAGES.items():
        if "--write" in sys.argv:
            (DOCS / name).write_text(write())
        else:
            print(write())
