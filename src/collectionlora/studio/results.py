"""What a visitor made: pictures with their settings, shown beside the photo, kept while the page is open."""

import html
from dataclasses import dataclass

import numpy as np
from PIL import Image

from collectionlora.pictures.photos import Photo, resize
from collectionlora.studio.photo_input import Upload
from collectionlora.studio.previews import MAX_VIEW, draw_on_tiles, to_address
from collectionlora.studio.stamps import Settings

MAX_HISTORY = 24  # pictures, at the network's working size
SAMPLED = 1.0  # the strength at which the page samples; less is mixed from photo and picture


@dataclass(frozen=True)
class Made:
    """One picture: `small` at the working size, as the network made it at full strength.

    `size` is the photo's (height, width), `seconds` the time from click to picture.
    """

    upload: Upload
    small: Photo
    size: tuple[int, int]
    settings: Settings
    seconds: float

    def full(self, strength: float, max_pixels: int) -> Photo:
        """At the photo's size and some strength: 0 is the photo, 1 the whole effect.

        Raises:
            UserError: the photo is gone, for uploads are not kept for ever.
        """
        picture = resize(self.small, self.size)
        if strength == SAMPLED:
            return picture
        photo = self.upload.read(max_pixels)
        return np.asarray(Image.blend(Image.fromarray(photo), Image.fromarray(picture), strength))

    def label(self) -> str:
        """What tells it from others, for example "Neon, seed 0"."""
        return f"{self.settings.describe_effects()}, seed {self.settings.seed}"


class History:
    """The pictures of one visitor's page, the newest first."""

    def __init__(self) -> None:
        self.pictures: list[Made] = []

    def add(self, made: list[Made]) -> None:
        """Put pictures before those that are there; the oldest go."""
        self.pictures[:] = [*made, *self.pictures][:MAX_HISTORY]

    def choices(self) -> list[tuple[str, int]]:
        """Labels and places, for a radio group."""
        return [(made.label(), place) for place, made in enumerate(self.pictures)]

    def tiles(self) -> str:
        """The style sheet that shows them on such a group."""
        return draw_on_tiles("history", [made.small for made in self.pictures])


def show_made(made: Made, strength: float) -> str:
    """Photo and picture over each other under a slider for mouse, finger and keyboard, with a caption."""
    height, width = made.size
    scale = min(1, MAX_VIEW / max(made.size))
    view = resize(made.small, (max(1, round(height * scale)), max(1, round(width * scale))))
    name, settings = html.escape(made.settings.describe_effects()), made.settings
    caption = (
        f"{name}, strength <span class='strength'>{strength:g}</span>, seed {settings.seed}, "
        f"{settings.steps} steps, made at {made.small.shape[1]} x {made.small.shape[0]} and enlarged to "
        f"{width} x {height}, {made.seconds:.1f} s"
    )
    move = "this.parentNode.style.setProperty('--at', this.value + '%')"
    return (
        f'<figure class="compare" style="--aspect: {width / height:.4f}; --strength: {strength:g}">'
        f'<div class="frame"><img class="before" src="{made.upload.address}" alt="Before: your photo">'
        f'<img class="after" src="{to_address(view)}" alt="After: {name}">'
        f'<input type="range" min="0" max="100" value="50" aria-label="Compare before and after" '
        f'oninput="{move}"></div><figcaption>{caption}</figcaption></figure>'
    )
