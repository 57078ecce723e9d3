"""What a visitor made: pictures with their settings, shown beside the photo, kept while the page is open."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from collectionlora.pictures.photos import Photo, resize
from collectionlora.studio.photo_input import Upload
from collectionlora.studio.previews import MAX_VIEW, draw_on_tiles, to_address
from collectionlora.studio.stamps import Settings

MAX_HISTORY = 24  # pictures, at the network's working size
WHOLE = 1.0  # the strength that is always sampled: the page mixes it with the photo while the dial moves
EMPTY = '<div class="empty-result">Your picture appears here.</div>'


@dataclass(eq=False)
class Made:
    """One picture: `whole` at the working size and at full strength, `dialled` at the strength of `settings`.

    `size` is the photo's (height, width), `seconds` the time from click to picture.
    """

    upload: Upload
    references: Sequence[Upload]
    size: tuple[int, int]
    settings: Settings
    whole: Photo
    dialled: Photo
    seconds: float

    def at(self, strength: float) -> Photo | None:
        """As the network made it at a strength; None if it did not."""
        if strength == WHOLE:
            return self.whole
        return self.dialled if strength == self.settings.strength else None

    def dial(self, strength: float, picture: Photo) -> None:
        """Take the picture at another strength in place of the one before."""
        self.settings = self.settings.model_copy(update={"strength": strength})
        self.dialled = picture

    def enlarge(self, picture: Photo) -> Photo:
        """A picture of the working size at the photo's size."""
        return resize(picture, self.size)

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
        return draw_on_tiles("history", [made.whole for made in self.pictures])


def show_made(made: Made, strength: float) -> str:
    """Photo and picture over each other under a slider for mouse, finger and keyboard, with a caption.

    At a strength that the network was not asked for both are mixed, and the caption says so.
    """
    exact, (height, width) = made.at(strength), made.size
    name, settings = html.escape(made.settings.describe_effects()), made.settings
    pictures = f'<img class="before" src="{made.upload.address}" alt="Before: your photo">'
    pictures += f'<img class="after whole" src="{_view(made.whole, made.size)}" alt="After: {name}">'
    if exact is not None and strength != WHOLE:
        pictures += f'<img class="after exact" src="{_view(exact, made.size)}" alt="After: {name}">'
    caption = (
        f"{name}, strength <span class='strength'>{strength:g}</span>, seed {settings.seed}, "
        f"{settings.steps} steps, made at {made.whole.shape[1]} x {made.whole.shape[0]} and enlarged to "
        f"{width} x {height}, {made.seconds:.1f} s"
    )
    move = "this.parentNode.style.setProperty('--at', this.value + '%')"
    mixed = " mixed" if exact is None else ""
    return (
        f'<figure class="compare{mixed}" style="--aspect: {width / height:.4f}; --strength: {strength:g}">'
        f'<div class="frame">{pictures}'
        f'<input type="range" min="0" max="100" value="50" aria-label="Compare before and after" '
        f'oninput="{move}"></div><figcaption>{caption}</figcaption></figure>'
    )


def _view(picture: Photo, size: tuple[int, int]) -> str:
    """The address of a picture of the working size as it is looked at, beside a photo of `size`."""
    height, width = size
    scale = min(1, MAX_VIEW / max(size))
    return to_address(resize(picture, (max(1, round(height * scale)), max(1, round(width * scale)))))
