"""Small pictures that the browser draws on the tiles of a radio group: the group stays one of plain HTML."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from collectionlora.pictures.photos import Photo

TILE = 128  # pixels of a small picture's long side
MAX_VIEW = 1600  # of a picture to look at
VIEW_QUALITY, TILE_QUALITY = 92, 80  # of JPEG


def to_address(photo: Photo, quality: int = VIEW_QUALITY) -> str:
    """A picture as a JPEG inside a `data:` address: nothing of it lies on the server's disk."""
    file = io.BytesIO()
    Image.fromarray(photo).save(file, format="JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def shrink(photo: Photo, longest: int) -> Photo:
    """A photo whose long side has at most `longest` pixels."""
    image = Image.fromarray(photo)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(image)


def draw_on_tiles(group: str, pictures: Sequence[Photo | None]) -> str:
    """A style sheet that shows pictures on the choices of a radio group, in their order.

    Args:
        group: the class of the group.
        pictures: None for a choice without one.
    """
    rules = [
        f".{group} label:nth-of-type({place})::before"
        f"{{background-image: url({to_address(shrink(picture, TILE), TILE_QUALITY)})}}"
        for place, picture in enumerate(pictures, 1)
        if picture is not None
    ]
    return f"<style>{' '.join(rules)}</style>"
