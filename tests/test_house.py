"""The rules of the house that a reader relies on, checked on the syntax tree."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "collectionlora"
FLOORS = [
    {
        "errors",
        "yaml_reading",
        "files",
        "processes",
        "progress",
        "flow",
        "config",
        "effects",
        "collection",
        "memory",
    },
    {"objectives", "adapters", "prompting", "data", "destinations", "vlm", "rewriting"},
    {"backbones"},
    {"checkpoint", "run_folder", "sampling", "streams", "workflows"},
    {"families"},
    {"model_card"},
    {"target_making", "prompt_writing", "distillation", "teaching", "trainer", "editing", "exporting"},
    {
        *("session", "checking", "manifest_template", "manifest_editing", "growing", "effectbench"),
        *("planning", "advising", "watching", "inputs"),
    },
    {"api", "studio", "terminal"},
    {"demo"},
    {"cli", "cli_growth", "cli_options"},
    {"__main__"},
]
# What may import upwards, and why: the prompt type is what prompting measures.
EXCEPTIONS = {("prompting", "backbones")}
FILES = sorted(SOURCE.rglob("*.py"))


def area(module):
    return module.split(".")[1] if "." in module else ""


def floor(name):
    return next(i for i, names in enumerate(FLOORS) if name in names)


def imports(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_lower_floor_never_imports_a_higher_one(path):
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module in imports(path):
        name = area(module) if module.startswith("collectionlora.") else ""
        if name and (own, name) not in EXCEPTIONS:
            assert floor(name) <= floor(own), f"{own} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_foreign_models_are_imported_only_where_they_are_wrapped(path):
    for module in imports(path):
        if module.split(".")[0] in {"diffusers", "transformers"}:
            assert path.parent.name == "backbones" or path.name == "encoders.py"
        if module.split(".")[0] == "gradio":
            assert path.parent.name == "studio"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
