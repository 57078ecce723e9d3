"""Arguments and options that several verbs share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from collectionlora.config import RECIPES
from collectionlora.system.errors import UserError


def check_recipe(recipe: str | None) -> str | None:
    """The name of a recipe, if one is given.

    Raises:
        UserError: no such recipe.
    """
    if recipe not in (None, *RECIPES):
        raise UserError("", "--recipe", f"{recipe!r} is not a recipe", f"choose from {', '.join(RECIPES)}")
    return recipe


Folder = Annotated[Path, typer.Argument(help="the collection's folder")]
Names = Annotated[list[str] | None, typer.Argument(help="effects; all if none is named")]
SomeNames = Annotated[list[str], typer.Argument(help="effects")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override a setting: section.name=value")]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", callback=check_recipe, help="default or paper; default: the manifest's recipe"),
]
VlmKey = Annotated[str | None, typer.Option("--api-key-env", help="environment variable that holds its key")]
VlmTokens = Annotated[
    int | None, typer.Option("--max-tokens-total", help="stop before more tokens than this are spent")
]
Quantization = Annotated[
    str | None, typer.Option(help="of the base: none, nf4 or int8; default: as it was distilled")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]


def repeat(option: str, values: Sequence[str] | None) -> list[str]:
    """An option before each of its values, as they were given."""
    return [word for value in values or [] for word in (option, value)]


def with_token_cap(layer: dict[str, dict[str, Any]], cap: int | None) -> dict[str, dict[str, Any]]:
    """Overrides with `--max-tokens-total` among them, if it is given."""
    return layer if cap is None else {**layer, "vlm": {**layer.get("vlm", {}), "max_tokens_total": cap}}
