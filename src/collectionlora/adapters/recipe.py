"""The recipe that a finished adapter carries in its own header: what is needed to use it, nothing else."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from collectionlora.adapters.formats import LoraFile, read_lora, write_lora
from collectionlora.adapters.roles import LoraWeights
from collectionlora.collection import RESULT
from collectionlora.config import ModelSettings
from collectionlora.errors import UserError

KEY = "collectionlora"


class Recipe(BaseModel):
    """Base and how it is held, sampling, and the student prompt of each effect by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    model: ModelSettings = ModelSettings()
    steps: int = Field(ge=1)
    shift: float = Field(gt=0, allow_inf_nan=False)
    resolution: int = Field(ge=8)
    effects: dict[str, str] = Field(min_length=1)
    version: str


def adapter_path(collection: Path) -> Path:
    """The finished adapter of a collection folder, or the file itself.

    Raises:
        UserError: the collection is not distilled yet.
    """
    if not collection.is_dir():
        return collection
    path = collection / RESULT
    if not path.exists():
        mend = f"run: collectionlora distill {collection}"
        raise UserError(path, "", "this collection is not distilled yet", mend)
    return path


def write_adapter(path: Path, weights: LoraWeights, recipe: Recipe) -> None:
    """Write a finished adapter with its recipe."""
    write_lora(path, weights, {KEY: recipe.model_dump_json(), "format": "pt"})


def read_adapter(path: Path) -> tuple[LoraFile, Recipe]:
    """Read a finished adapter.

    Raises:
        UserError: not an adapter made here.
    """
    lora = read_lora(path)
    try:
        return lora, Recipe.model_validate_json(lora.metadata[KEY])
    except (KeyError, ValidationError):
        mend = "give a collection folder or the file that distill wrote"
        raise UserError(path, "header", "carries no collectionlora recipe", mend) from None
