"""Working sizes: photos keep their shape and become images of about `data.resolution` squared pixels.

Both sides are rounded to multiples of the base's, as the pipelines of diffusers and ComfyUI round them, so
that photos of near aspects share one size. A photo is resized to it, be it larger or smaller. Training,
targets, benchmark and use all go this way.
"""

import logging
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from collectionlora.config import DataSettings
from collectionlora.pictures.photos import Photo, read_photo, resize, to_images
from collectionlora.system.errors import UserError, quote

MAX_ASPECT = 3  # of a working size, long side to short side
MAX_GROWTH = 4  # of the sides of a size that a user asks for, to those of the resolution taught
Size = int | tuple[int, int]  # as many pixels as the square of this side, or (width, height)
log = logging.getLogger(__name__)


def crop_middle(photo: Photo, max_aspect: float) -> Photo:
    """The middle of a photo whose long side is more than `max_aspect` times its short one, else all of it."""
    height, width = photo.shape[:2]
    rows, columns = (min(a, max(1, round(max_aspect * b))) for a, b in ((height, width), (width, height)))
    top, left = (height - rows) // 2, (width - columns) // 2
    return photo[top : top + rows, left : left + columns]


@cache
def warn_of_middle(path: Path) -> None:
    """Say it once, for the general stream draws a photo often."""
    log.warning("%s: is more than %d times as long as wide; its middle is taken", path, MAX_ASPECT)


def parse_size(text: str) -> Size:
    """`128` as 128, and `160x96` as (160, 96): width and height.

    Raises:
        UserError: it is neither.
    """
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text.strip().lower())
    if found is None:
        raise UserError("", "size", f"is {quote(text)}", "give pixels: 128, or 160x96 for width and height")
    width, height = found.groups()
    return int(width) if height is None else (int(width), int(height))


def check_size(size: Size, taught: int, multiple: int) -> None:
    """Refuse a size that a base with this `multiple` cannot work at, or one far from the resolution taught.

    Raises:
        UserError: a side is no multiple, or is more than `MAX_GROWTH` times the resolution.
    """
    most = max(multiple, MAX_GROWTH * taught // multiple * multiple)
    for side in size if isinstance(size, tuple) else (size,):
        if side % multiple or not multiple <= side <= most:
            hint = f"give multiples of {multiple} from {multiple} to {most}; effects were taught at {taught}"
            raise UserError("", "size", f"has a side of {side} pixels", hint)


def square_side(size: Size, multiple: int) -> int:
    """The side of the square with as many pixels, rounded up to a multiple."""
    side = math.sqrt(math.prod(size)) if isinstance(size, tuple) else size
    return math.ceil(side / multiple) * multiple


@dataclass(frozen=True)
class WorkingSizes:
    """The sizes that a base works at.

    Attributes:
        resolution: side of the square whose pixels all sizes have, about.
        multiple: heights and widths are multiples of it.
        square: the middle squares of photos are asked for.
    """

    resolution: int
    multiple: int
    square: bool = False

    @classmethod
    def of(cls, settings: DataSettings, multiple: int) -> "WorkingSizes":
        """What the settings ask for, of a base with this `side_multiple`."""
        return cls(settings.resolution, multiple, settings.crop == "square")

    @property
    def max_aspect(self) -> int:
        return 1 if self.square else MAX_ASPECT

    def find(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the base works on a photo of this height and width."""
        aspect = min(max(height / width, 1 / self.max_aspect), self.max_aspect)
        sides = self.resolution * aspect**0.5, self.resolution / aspect**0.5
        rows, columns = (max(1, round(side / self.multiple)) for side in sides)
        return rows * self.multiple, columns * self.multiple

    def list_all(self) -> list[tuple[int, int]]:
        """Every height and width that `find` can give."""
        steps = self.resolution / self.multiple
        longest = max(self.find(self.max_aspect, 1)) // self.multiple
        # A size is reached if an aspect rounds to both sides, whose product before rounding is `steps**2`.
        return [
            (rows * self.multiple, columns * self.multiple)
            for rows in range(1, longest + 1)
            for columns in range(1, longest + 1)
            if (rows - 0.5) * (columns - 0.5) <= steps**2 <= (rows + 0.5) * (columns + 0.5)
        ]

    def fit(self, photo: Photo, size: tuple[int, int] | None = None) -> Photo:
        """A photo to learn from or to judge on, at its working size or at a given one (height, width).

        Of a photo beyond the aspects of all sizes the middle is taken.
        """
        middle = crop_middle(photo, self.max_aspect)
        return resize(middle, size or self.find(*middle.shape[:2]))

    def read(self, path: Path) -> Photo:
        """The photo of a file as `fit` makes it, with a warning if only its middle is taken.

        Raises:
            UserError: see `read_photo`.
        """
        photo = read_photo(path)
        if not self.square and max(photo.shape[:2]) > MAX_ASPECT * min(photo.shape[:2]):
            warn_of_middle(path)
        return self.fit(photo)

    def show(self, photo: Photo) -> Tensor:
        """A photo to use, as a network takes it: whole, an image in [0, 1], `[1, 3, height, width]`.

        One beyond the aspects of all sizes is squeezed, for its user wants it back whole.
        """
        return to_images([resize(photo, self.find(*photo.shape[:2]))])
