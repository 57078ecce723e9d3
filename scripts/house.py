"""How the package is built: its rooms, their floors and who imports whom, read from the source.

python scripts/house.py                      # counts, and the table of docs/architecture.md
python scripts/house.py --source OTHER/src/collectionlora
python scripts/house.py --write              # put the table into docs/architecture.md

A room is a file or a folder directly in the package. It stands one floor above the highest room that it
imports. An arrow runs back up if it belongs to a circle, or if it imports the package itself, whose face
offers every verb, from a room that the face needs.
"""

import argparse
import ast
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "collectionlora"
PAGE = ROOT / "docs" / "architecture.md"
FACE = "__init__"
START, END = "<!-- made by scripts/house.py -->", "<!-- end -->"
Graph = dict[str, set[str]]


def read_modules(source: Path) -> dict[str, Path]:
    """Every file of the package by its dotted name in it; the package's own file is `__init__`."""
    modules = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        folder = parts[:-1] if parts[-1] == FACE else parts
        modules[".".join(folder) or FACE] = path
    return modules


def read_imports(source: Path) -> Graph:
    """The modules of the package that each of its modules imports, wherever the statement stands."""
    modules = read_modules(source)
    package = source.name
    graph: Graph = {}
    for name, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                module = _absolute(node, name, path, package)
                found |= {_known(f"{module}.{alias.name}", module, modules, package) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {_known(alias.name, alias.name, modules, package) for alias in node.names}
        graph[name] = {found_name for found_name in found if found_name} - {name}
    return graph


def _absolute(node: ast.ImportFrom, name: str, path: Path, package: str) -> str:
    """The module that a statement of module `name` imports from."""
    if not node.level:
        return node.module or ""
    parts = [] if name == FACE else name.split(".")
    folder = parts if path.stem == FACE else parts[:-1]
    return ".".join([package, *folder[: len(folder) - node.level + 1], *filter(None, [node.module])])


def _known(name: str, module: str, modules: Mapping[str, Path], package: str) -> str | None:
    """A module of the package by its full name, or the one that an imported name comes from."""
    for candidate in (name, module):
        if candidate == package:
            return FACE
        if (
            candidate.startswith(f"{package}.")
            and (inner := candidate.removeprefix(f"{package}.")) in modules
        ):
            return inner
    return None


def rooms_of(imports: Graph) -> Graph:
    """The rooms that each room imports."""
    rooms: Graph = {}
    for name, found in imports.items():
        room = name.partition(".")[0]
        rooms.setdefault(room, set()).update(other.partition(".")[0] for other in found)
    return {room: found - {room} for room, found in rooms.items()}


def drop_face(graph: Graph) -> Graph:
    """The graph without the arrows to the package's face from what the face itself reaches."""
    reached = reach(graph, FACE)
    return {node: found - {FACE} if node in reached else found for node, found in graph.items()}


def reach(graph: Graph, start: str) -> set[str]:
    """All that is imported from `start` on."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def find_circles(graph: Graph) -> list[list[str]]:
    """Groups whose members all reach each other, arrows back to the package's face left out."""
    forward = drop_face(graph)
    reached = {node: reach(forward, node) for node in forward}
    circles = {tuple(sorted({n for n in reached[node] if node in reached[n]})) for node in forward}
    return sorted(list(circle) for circle in circles if circle)


def find_floors(rooms: Graph) -> dict[str, int]:
    """The floor of each room; the rooms of a circle share one."""
    forward = drop_face(rooms)
    circle_of = {room: circle for circle in find_circles(rooms) for room in circle}

    @cache
    def floor(room: str) -> int:
        group = circle_of.get(room, [room])
        below = {other for member in group for other in forward[member]} - set(group)
        return 1 + max(map(floor, below), default=-1)

    return {room: floor(room) for room in rooms}


def arrows_back_up(rooms: Graph) -> list[tuple[str, str]]:
    """Imports that run against the floors: within a circle, or back to the package's face."""
    forward, circles = drop_face(rooms), find_circles(rooms)
    to_face = {(room, FACE) for room in rooms if FACE in rooms[room] - forward[room]}
    inside = {(a, b) for circle in circles for a in circle for b in forward[a] if b in circle}
    return sorted(to_face | inside)


def purpose(source: Path, room: str) -> str:
    """The first line of a room's docstring."""
    file = source / f"{room}.py"
    text = (file if file.exists() else source / room / "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0].rstrip(".")


def write_table(source: Path) -> str:
    """The rooms by floor, with what each is for, as Markdown."""
    floors = find_floors(rooms_of(read_imports(source)))
    lines = ["| floor | room | what it is |", "|---|---|---|"]
    for room, floor in sorted(floors.items(), key=lambda pair: (pair[1], pair[0])):
        name = room if (source / f"{room}.py").exists() else f"{room}/"
        lines.append(f"| {floor} | `{name}` | {purpose(source, room)} |")
    return "\n".join(lines)


def entries(source: Path) -> list[str]:
    """All that lies directly in the package's folder."""
    return sorted(path.name for path in source.iterdir() if path.name != "__pycache__")


def tell(source: Path) -> Iterable[str]:
    """Counts of the house, one a line."""
    imports = read_imports(source)
    rooms = rooms_of(imports)
    inside = [
        circle for circle in find_circles(imports) if len({name.partition(".")[0] for name in circle}) == 1
    ]
    yield f"entries at the top  {len(entries(source))}"
    yield f"rooms               {len(rooms)}"
    yield f"arrows              {sum(map(len, rooms.values()))}"
    yield f"floors              {1 + max(find_floors(rooms).values())}"
    yield f"arrows back up      {len(arrows_back_up(rooms))}"
    yield f"circles of rooms    {len(find_circles(rooms))}"
    yield f"circles in a room   {len(inside)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=SOURCE, help="the package's folder")
    parser.add_argument("--write", action="store_true", help="put the table into docs/architecture.md")
    args = parser.parse_args()
    print(*tell(args.source), sep="\n")
    print(write_table(args.source))
    if args.write:
        before, rest = PAGE.read_text(encoding="utf-8").split(START)
        after = rest.split(END)[1]
        PAGE.write_text(f"{before}{START}\n{write_table(SOURCE)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
