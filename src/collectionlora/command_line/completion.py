"""What the shell offers after an option; nothing heavy is imported, for people wait for it."""

import json
from pathlib import Path

import typer

WEIGHTS = Path(__file__).parents[1] / "weights"
RESULT, KEY = "collection.safetensors", "collectionlora"  # as `collection` and `adapters.recipe` have them


def complete_effects(context: typer.Context, incomplete: str) -> list[str]:
    """The effects of the adapter that the command line names, as far as its header can be read."""
    words = [context.params.get("collection"), *context.args]  # not parsed yet while a word is missing
    given = Path(next(filter(None, words), ""))
    path = given / RESULT if given.is_dir() else WEIGHTS / RESULT if given == Path("nano") else given
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        names = ["all", *json.loads(header["__metadata__"][KEY])["effects"]]
    except (OSError, ValueError, KeyError, MemoryError):
        return []
    return [name for name in names if name.startswith(incomplete)]
