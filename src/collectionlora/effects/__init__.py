"""Procedural photo effects whose right answers are known, to train and measure image editing models."""

from collectionlora.effects.base import PhotoEffect
from collectionlora.effects.cartoon import CARTOONS
from collectionlora.effects.craft import CRAFT
from collectionlora.effects.drawing import DRAWING
from collectionlora.effects.film import FILM_EFFECTS
from collectionlora.effects.geometry import GEOMETRY
from collectionlora.effects.glitch import GLITCHES
from collectionlora.effects.light import LIGHT
from collectionlora.effects.material import MATERIALS
from collectionlora.effects.mosaic import MOSAICS
from collectionlora.effects.painting import PAINTING
from collectionlora.effects.palette import PALETTE
from collectionlora.effects.party import PARTIES
from collectionlora.effects.prints import PRINTS
from collectionlora.effects.weather import WEATHERS

__all__ = ["ALL_EFFECTS", "EFFECTS", "THEMES", "PhotoEffect"]

THEMES = {
    "Drawing": DRAWING,
    "Print": PRINTS,
    "Painting": PAINTING,
    "Cartoon": CARTOONS,
    "Film": FILM_EFFECTS,
    "Colour": PALETTE,
    "Light": LIGHT,
    "Party": PARTIES,
    "Mosaic": MOSAICS,
    "Craft": CRAFT,
    "Material": MATERIALS,
    "Weather": WEATHERS,
    "Glitch": GLITCHES,
    "Geometry": GEOMETRY,
}

EFFECTS: dict[str, PhotoEffect] = {effect.name: effect for theme in THEMES.values() for effect in theme}
# With each outcome of those that have several as an effect of its own, such as `duotone-2`.
ALL_EFFECTS = EFFECTS | {one.name: one for effect in EFFECTS.values() for one in effect.variants()}
