"""Pictures inside a page: small enough that the page can be sent by mail."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from collectionlora.effectbench.gallery import Shown
from collectionlora.pictures.photos import Photo

MAX_BYTES = 8_000_000
LOSSLESS_SIDE = 128
STRIP_WIDTH = 800
LOSSY: dict[str, Any] = {"quality": 90, "subsampling": 0}
# Photos of each effect and their longest side; the first that fits is taken.
SIZES = ((3, 384), (2, 384), (2, 256), (1, 256), (1, 160), (1, 96), (1, 64))
Row = tuple[Shown, dict[str, str]]  # data URLs by "source", kind of truth and method


def embed(photo: Photo, side: int) -> str:
    """A picture as a data URL, at most `side` wide and high; small ones keep every pixel as it is."""
    image, buffer = Image.fromarray(photo), io.BytesIO()
    image.thumbnail((side, side), Image.Resampling.BOX)
    kind, options = ("webp", {"lossless": True}) if max(image.size) <= LOSSLESS_SIDE else ("jpeg", LOSSY)
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def embed_gallery(gallery: Sequence[Shown]) -> list[Row]:
    """The pictures of a page, as many and as large as `MAX_BYTES` allow."""
    rows: list[Row] = []
    for photos, side in SIZES:
        rows = [(one, embed_row(one, side)) for one in gallery if one.index < photos]
        if sum(len(url) for _, urls in rows for url in urls.values()) <= MAX_BYTES:
            break
    return rows


def embed_strip(photos: Sequence[Photo]) -> str:
    """Pictures side by side as one."""
    return embed(np.concatenate(photos, axis=1), STRIP_WIDTH)


def embed_row(shown: Shown, side: int) -> dict[str, str]:
    return {name: embed(p, side) for name, p in {"source": shown.source, **shown.right, **shown.made}.items()}
