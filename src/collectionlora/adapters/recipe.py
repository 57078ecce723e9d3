"""The recipe that a finished adapter carries in its own header: what is needed to use it, nothing else."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from collectionlora.adapters.flux_names import RENAMED
from collectionlora.adapters.formats import LoraFile, read_header, read_lora, write_lora
from collectionlora.adapters.roles import LoraWeights
from collectionlora.collection import MANIFEST, NAME, RESULT, Collection
from collectionlora.config import ModelSettings, Quantization, Sampler, Settings
from collectionlora.system.errors import UserError, quote

KEY = "collectionlora"
# What an export for ComfyUI names otherwise: no other base has modules of these names in diffusers.
EXPORTED = dict(RENAMED)
SHIPPED = Path(__file__).parents[1] / "weights" / RESULT
START = "settings.match.start"
EffectName = Annotated[str, Field(pattern=NAME, max_length=64)]


class Recipe(BaseModel):
    """Base and how it is held, sampling, and the student prompt of each effect by name.

    `references` says how many reference images an effect was taught beside the photo, where it is not 0.
    The file may be a stranger's: names become names of files, and numbers decide how long and how large.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    model: ModelSettings = ModelSettings()
    steps: int = Field(ge=1, le=1000)
    shift: float = Field(gt=0, le=1000, allow_inf_nan=False)
    sampler: Sampler = "stochastic"
    resolution: int = Field(ge=8, le=8192)
    effects: dict[EffectName, str] = Field(min_length=1)
    references: dict[EffectName, NonNegativeInt] = {}
    version: str

    def held_as(self, quantization: str | None) -> ModelSettings:
        """How the base is held: as the adapter was distilled on it, or in another quantisation.

        Raises:
            UserError: there is no such quantisation.
        """
        if quantization is None:
            return self.model
        if quantization not in get_args(Quantization):
            hint = f"choose from {', '.join(get_args(Quantization))}"
            raise UserError(
                "", "--quantization", f"{quote(quantization)} is not a kind of quantisation", hint
            )
        return self.model.model_copy(update={"quantization": quantization})


def adapter_path(collection: Path) -> Path:
    """The finished adapter of a collection folder, or the file itself; `nano` is the one that ships.

    Raises:
        UserError: the collection is not distilled yet.
    """
    if not collection.is_dir():
        return SHIPPED if collection == Path("nano") and not collection.exists() else collection
    path = collection / RESULT
    if not path.exists():
        others = sorted(collection.glob("*.safetensors"))
        if others and not (collection / MANIFEST).exists():
            raise UserError(collection, "", "is not a collection's folder", f"give the file: {others[0]}")
        hint = f"run: collectionlora distill {collection}"
        raise UserError(path, "", "this collection is not distilled yet", hint)
    return path


def start_file(collection: Collection, settings: Settings) -> Path | None:
    """The finished adapter that the student begins as, where `match.start` names one.

    Raises:
        UserError: there is no such file in the collection, or the run would replace it.
    """
    if settings.match.start in ("base", "merge"):
        return None
    path = collection.path(settings.match.start, START)
    if not path.is_file():
        raise UserError(path, START, "is not a file", "write base, merge, or the file of a finished adapter")
    if path.resolve() == collection.result.resolve():
        hint = f"copy it, for example to {path.with_name('earlier.safetensors')}, and give the copy"
        raise UserError(path, START, "is replaced by the run's result", hint)
    return path


def write_adapter(path: Path, weights: LoraWeights, recipe: Recipe) -> None:
    """Write a finished adapter with its recipe."""
    write_lora(path, weights, {KEY: recipe.model_dump_json(), "format": "pt"})


def read_adapter(path: Path) -> tuple[LoraFile, Recipe]:
    """Read a finished adapter, or an export of one; modules have their names in diffusers.

    Raises:
        UserError: not an adapter made here.
    """
    lora = read_lora(path)
    recipe = _parse_recipe(path, lora.metadata)
    weights = {EXPORTED.get(module, module): pair for module, pair in lora.weights.items()}
    return replace(lora, weights=weights), recipe


def read_recipe(path: Path) -> Recipe:
    """The recipe of a finished adapter, without its weights.

    Raises:
        UserError: not an adapter made here.
    """
    return _parse_recipe(path, read_header(path))


def _parse_recipe(path: Path, header: Mapping[str, str]) -> Recipe:
    try:
        return Recipe.model_validate_json(header[KEY])
    except (KeyError, ValidationError):
        hint = "give a collection folder or the file that distill wrote"
        raise UserError(path, "header", "carries no collectionlora recipe", hint) from None
