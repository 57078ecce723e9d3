"""The settings that made a picture, inside its PNG: who drops it on the page gets them back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from collectionlora.studio.words import human_name, write_words

KEY = "collectionlora"  # of the PNG's text
TOGETHER: Literal["in one prompt"] = "in one prompt"
IN_TURN: Literal["one after the other"] = "one after the other"
MAX_SEED = 2**31 - 1  # of the page: a number that every browser holds exactly
FAST = 1  # zlib: a picture of 12 megapixels is written in a third of the time, and is a little larger


class Settings(BaseModel):
    """How a picture is made: one effect or two, forwards of the network, seed, strength in [0, 1], and size.

    `size` is the side of the square with as many pixels as the network works with; None is the one taught.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    effects: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]
    order: Literal["in one prompt", "one after the other"] = TOGETHER
    steps: int = Field(ge=1, le=1000)
    seed: int = Field(ge=0, le=MAX_SEED)
    strength: float = Field(ge=0, le=1, allow_inf_nan=False)
    size: int | None = Field(default=None, ge=1)

    @property
    def passes(self) -> list[list[str]]:
        """The effects of each time that the photo is edited."""
        in_turn = self.order == IN_TURN
        return [[name] for name in self.effects] if in_turn else [list(self.effects)]

    def describe_effects(self) -> str:
        """For example "Pencil sketch, then neon edges"."""
        first, *others = self.effects
        joint = ", then" if self.order == IN_TURN else " and"
        return human_name(first) + "".join(f"{joint} {write_words(name)}" for name in others)

    def name_file(self, photo: str) -> str:
        """The name of the PNG, for example `me-neon-s0.png`."""
        return f"{photo}-{'-'.join(self.effects)}-s{self.seed}.png"


def stamp(settings: Settings) -> dict[str, Any]:
    """What Pillow's `save` needs to write a PNG with its settings."""
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, settings.model_dump_json())
    return {"pnginfo": info, "compress_level": FAST}


def read_stamp(path: Path, known: Sequence[str]) -> Settings | None:
    """The settings in a PNG; None if it has none, or effects that this collection does not know."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            settings = Settings.model_validate_json(str(image.info[KEY]))
    # Any file may be dropped, and Pillow's decoders let out whatever damaged bytes make them do.
    except (OSError, KeyError, ValueError, SyntaxError, ValidationError):
        return None
    return settings if set(settings.effects) <= set(known) else None
