"""Add effects to a manifest and take them out as text, so that its comments and its order stay."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from collectionlora.collection import MANIFEST
from collectionlora.system.errors import UserError


def add_effect(folder: Path, entry: Mapping[str, str]) -> str:
    """The manifest's text with one more effect at the end of `effects`.

    Raises:
        UserError: the list is not in block style.
    """
    lines, items = read_items(folder)
    start, end = items[-1][1:]
    dash = " " * lines[start].index("-")
    written = yaml.safe_dump(dict(entry), sort_keys=False, allow_unicode=True).splitlines()
    lines[end - 1] = lines[end - 1].rstrip("\n") + "\n"
    lines[end:end] = [f"{dash}{'- ' if i == 0 else '  '}{line}\n" for i, line in enumerate(written)]
    return "".join(lines)


def drop_effects(folder: Path, names: Sequence[str]) -> str:
    """The manifest's text without the named effects.

    Raises:
        UserError: the list is not in block style.
    """
    lines, items = read_items(folder)
    for name, start, end in reversed(items):
        if name in names:
            del lines[start:end]
    return "".join(lines)


def read_items(folder: Path) -> tuple[list[str], list[tuple[str, int, int]]]:
    """The manifest's lines, and of each effect its name, its first line and the one after its last."""
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    document = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(document, yaml.MappingNode)  # the collection was loaded from it
    effects = next(value for key, value in document.value if key.value == "effects")
    if effects.flow_style or any(effect.flow_style for effect in effects.value):
        hint = "write each effect as lines under a dash, or edit the manifest yourself"
        raise UserError(folder / MANIFEST, "effects", "is written in brackets", hint)
    items = []
    for effect in effects.value:
        name = next(value.value for key, value in effect.value if key.value == "name")
        start = effect.start_mark.line
        while not lines[start].lstrip().startswith("-"):
            start -= 1
        end = max(mark.line + (mark.column > 0) for mark in (node.end_mark for node in leaves(effect)))
        # A comment as deep as the effect's keys is the effect's.
        while end < len(lines) and is_comment(lines[end], deeper_than=indent(lines[start])):
            end += 1
        items.append((name, start, end))
    return lines, items


def is_comment(line: str, deeper_than: int) -> bool:
    """Whether a line is a comment behind more than `deeper_than` spaces."""
    return line.lstrip().startswith("#") and indent(line) > deeper_than


def indent(line: str) -> int:
    """The number of spaces before a line's text."""
    return len(line) - len(line.lstrip())


def leaves(node: yaml.Node) -> Iterator[yaml.Node]:
    """The scalars and the bracketed parts of a node; its text ends where theirs do, before a comment."""
    if isinstance(node, yaml.CollectionNode) and node.flow_style:
        yield node
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from (leaf for part in pair for leaf in leaves(part))
    elif isinstance(node, yaml.SequenceNode):
        yield from (leaf for part in node.value for leaf in leaves(part))
    else:
        yield node
