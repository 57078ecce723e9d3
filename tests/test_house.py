"""The rules of the house that a reader relies on, checked on the syntax tree."""

import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "collectionlora"
HOUSE = runpy.run_path(str(ROOT / "scripts" / "house.py"))
IMPORTS = HOUSE["read_imports"](SOURCE)
MAX_LINES, MAX_FUNCTION = 450, 60


def below(name):
    """Whatever a module or a room loads, directly or not."""
    return HOUSE["reach"](HOUSE["drop_face"](IMPORTS), name)


def test_no_circle_among_rooms_or_modules_and_no_arrow_back_up():
    assert HOUSE["find_circles"](IMPORTS) == []
    assert HOUSE["arrows_back_up"](HOUSE["rooms_of"](IMPORTS)) == []


def test_circles_and_floors_are_found(tmp_path):
    for name, text in {
        "__init__": "def late():\n    from house.roof import x",
        "ground": "",
        "first": "from house import ground",
        "left": "from house.right import x\nfrom . import first",
        "right": "def late():\n    from house.left import x",
        "low": "from house import version",
        "roof": "import house.left, house.first, house.low",
        "outside": "import house",
        "wing/__init__": "",
        "wing/a": "from .b import x",
        "wing/b": "from house.wing import a",
    }.items():
        path = tmp_path / "house" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    imports = HOUSE["read_imports"](tmp_path / "house")
    assert HOUSE["find_circles"](imports) == [["left", "right"], ["wing.a", "wing.b"]]
    rooms = HOUSE["rooms_of"](imports)
    floors = HOUSE["find_floors"](rooms)
    assert [floors[room] for room in ("ground", "first", "left", "right", "roof", "wing")] == [
        0,
        1,
        2,
        2,
        3,
        0,
    ]
    assert HOUSE["arrows_back_up"](rooms) == [("left", "right"), ("low", "__init__"), ("right", "left")]


@pytest.mark.parametrize("room", ["distillation", "runs", "editing"])
def test_training_and_use_never_load_the_benchmark_or_the_studio(room):
    names = [name for name in IMPORTS if name.partition(".")[0] == room]
    loaded = {other.partition(".")[0] for name in names for other in below(name)}
    assert not loaded & {"effectbench", "studio", "command_line"}


def test_the_studio_and_editing_never_load_training():
    names = [name for name in IMPORTS if name.partition(".")[0] in ("studio", "editing")]
    assert not {"distillation", "runs"} & {other.partition(".")[0] for name in names for other in below(name)}


def test_the_page_shows_the_floors_that_the_imports_make():
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert f"{HOUSE['START']}\n{HOUSE['write_table'](SOURCE)}\n{HOUSE['END']}" in text


def test_the_top_of_the_package_stays_small():
    assert len(HOUSE["entries"](SOURCE)) <= 26


def test_foreign_libraries_are_imported_only_where_they_are_wrapped():
    wrong = []
    for name, path in HOUSE["read_modules"](SOURCE).items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom | ast.Import):
                continue
            module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
            library, room = module.split(".")[0], name.partition(".")[0]
            if (
                library in {"diffusers", "transformers"}
                and room != "backbones"
                and path.name != "encoders.py"
            ):
                wrong.append((name, library))
            if library == "gradio" and room != "studio":
                wrong.append((name, library))
    assert wrong == []


def test_files_and_functions_stay_short():
    long = []
    for name, path in HOUSE["read_modules"](SOURCE).items():
        text = path.read_text()
        if text.count("\n") > MAX_LINES:
            long.append((name, text.count("\n")))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION:
                long.append((name, node.name))
    assert long == []
