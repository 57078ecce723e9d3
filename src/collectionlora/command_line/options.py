"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from collectionlora.config import RECIPES, parse_overrides
from collectionlora.system.errors import UserError

Folder = Annotated[Path, typer.Argument(help="the collection's folder")]
Names = Annotated[list[str] | None, typer.Argument(help="effects; all if none is named")]
SomeNames = Annotated[list[str], typer.Argument(help="effects")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override a setting: section.name=value")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="default or paper; default: the manifest's recipe")
]
VlmKey = Annotated[str | None, typer.Option("--api-key-env", help="environment variable that holds its key")]
VlmTokens = Annotated[
    int | None, typer.Option("--max-tokens-total", help="stop before more tokens are spent")
]
Quantization = Annotated[
    str | None, typer.Option(help="of the base: none, nf4 or int8; default: as it was distilled")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]


def read_layer(assignments: list[str] | None, recipe: str | None = None) -> dict[str, dict[str, Any]]:
    """The settings of `--set`, over those of `--recipe`.

    Raises:
        UserError: no such recipe.
        SettingsError: an assignment that is not `section.name=value`.
    """
    if recipe is not None and recipe not in RECIPES:
        raise UserError("", "--recipe", f"{recipe!r} is not a recipe", f"choose from {', '.join(RECIPES)}")
    layer = {section: dict(values) for section, values in RECIPES[recipe or "default"].items()}
    for section, values in parse_overrides(assignments or []).items():
        layer[section] = {**layer.get(section, {}), **values}
    return layer


def with_token_cap(layer: dict[str, dict[str, Any]], cap: int | None) -> dict[str, dict[str, Any]]:
    """Overrides with `--max-tokens-total` among them, if it is given."""
    return layer if cap is None else {**layer, "vlm": {**layer.get("vlm", {}), "max_tokens_total": cap}}
