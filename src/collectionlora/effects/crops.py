"""Random crops of photographs, and scenes: a crop with one cut-out subject pasted into it.

Everything is a pure function of its arguments and of the generator it is given. Photographs live in memory at
several sizes, so that a crop of any scale costs one small resize.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from collectionlora.effects.base import UInt8Image

FloatPhoto = NDArray[np.float32]  # [H, W, 3] in 0..255, or [H, W] in 0..1 for masks

MIN_CROP = 0.3  # of the largest crop that a photograph holds, by side
PLAINEST_CROP = 20.0  # a crop whose channels all vary less than this (standard deviation) is drawn again
MAX_TRIES = 4
PLACES = ("on the left", "in the middle", "on the right")


class PhotoPool:
    """Photographs in memory, and random crops of them.

    Args:
        photographs: uint8 `[H, W, 3]` each, of any size.

    Raises:
        ValueError: there is none, or one has another shape or type.
    """

    def __init__(self, photographs: Sequence[UInt8Image]) -> None:
        if not photographs:
            raise ValueError("A PhotoPool needs at least one photograph.")
        for photograph in photographs:
            check_photo(photograph)
        self._pyramids = [build_pyramid(Image.fromarray(photograph)) for photograph in photographs]

    def __len__(self) -> int:
        """The number of photographs."""
        return len(self._pyramids)

    def crop(self, rng: np.random.Generator, size: tuple[int, int] = (64, 64)) -> UInt8Image:
        """A random part of a random photograph, mirrored half the time.

        The crop's scale is drawn log-uniformly, from `MIN_CROP` of the largest crop of this aspect up to
        all of it, but never so small that it would be enlarged (unless the photograph itself is too small).

        Args:
            rng: the source of every draw.
            size: height and width of the result, in pixels.

        Returns:
            uint8 `[height, width, 3]`.
        """
        for _ in range(MAX_TRIES):
            pyramid = self._pyramids[rng.integers(len(self._pyramids))]
            crop = resize_crop(pyramid, draw_box(pyramid[0].size, rng, size), size)
            # A flip or a turn of an empty sky teaches nothing: prefer crops that show something.
            if crop[::2, ::2].std(axis=(0, 1)).max() >= PLAINEST_CROP:
                break
        return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


def draw_box(
    full: tuple[int, int], rng: np.random.Generator, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a random crop of a photograph of `full` width and height."""
    full_width, full_height = full
    height, width = size
    largest = min(full_height, full_width * height / width)
    smallest = min(max(MIN_CROP * largest, height), largest)
    box_height = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
    box_width = box_height * width / height
    left = rng.uniform(0, max(full_width - box_width, 0))
    top = rng.uniform(0, max(full_height - box_height, 0))
    return left, top, min(left + box_width, full_width), min(top + box_height, full_height)


def resize_crop(
    pyramid: Sequence[Image.Image], box: tuple[float, float, float, float], size: tuple[int, int]
) -> UInt8Image:
    """The part `box` of a photograph, resized by area to `size`; uint8 `[height, width, 3]`."""
    height, width = size
    full_height, box_height = pyramid[0].height, box[3] - box[1]
    # The smallest stored size that still has a pixel for each pixel of the crop, else the full one.
    fine_enough = [level for level in pyramid if box_height * level.height >= height * full_height]
    level = fine_enough[-1] if fine_enough else pyramid[0]
    across, down = level.width / pyramid[0].width, level.height / full_height
    left, top, right, bottom = box
    scaled = (left * across, top * down, min(right * across, level.width), min(bottom * down, level.height))
    return np.asarray(level.resize((width, height), Image.Resampling.HAMMING, box=scaled))


@dataclass(frozen=True)
class Cutout:
    """A subject without its background: `noun` names it, `rgba` is uint8 `[h, w, 4]` with straight alpha."""

    noun: str
    rgba: NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """A photo with one subject, and what it is made of.

    Attributes:
        image: the photo with the subject, uint8 `[H, W, 3]`.
        background: the photo without it, uint8 `[H, W, 3]`.
        subject: the subject's own colours where `mask` is above 0, float32 `[H, W, 3]` in 0..255.
        mask: how much of each pixel the subject covers, float32 `[H, W]` in 0..1.
        noun: a plain word for the subject.
        place: where it is, one of `PLACES`.
    """

    image: UInt8Image
    background: UInt8Image
    subject: FloatPhoto
    mask: FloatPhoto
    noun: str
    place: str


def check_photo(photo: UInt8Image) -> None:
    """Raise ValueError unless `photo` is uint8 `[H, W, 3]`."""
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise ValueError(f"A photo must be uint8 [H, W, 3], not {photo.dtype} {list(photo.shape)}.")


def build_pyramid(photograph: Image.Image) -> list[Image.Image]:
    """`photograph` and its halves, down to a short side of about 100 pixels."""
    pyramid = [photograph]
    while min(pyramid[-1].size) >= 200:
        pyramid.append(pyramid[-1].reduce(2))
    return pyramid


def load_photographs(folder: Path | str) -> PhotoPool:
    """All `*.jpg` and `*.png` directly in `folder`, in the order of their names.

    Raises:
        ValueError: `folder` holds none.
    """
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix in (".jpg", ".png"))
    if not paths:
        raise ValueError(f"There are no photographs (*.jpg, *.png) in {folder}.")
    return PhotoPool([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def load_cutouts(folder: Path | str) -> list[Cutout]:
    """All `CATEGORY/NAME.png` in `folder`, in the order of their paths; the noun is the PNG's text `noun`.

    Raises:
        ValueError: `folder` holds none, or one has no noun.
    """
    cutouts = []
    for path in sorted(Path(folder).glob("*/*.png")):
        with Image.open(path) as image:
            noun = image.info.get("noun")
            if noun is None:
                raise ValueError(f"The cut-out {path} has no text `noun` that says what it shows.")
            cutouts.append(Cutout(noun, np.asarray(image.convert("RGBA"))))
    if not cutouts:
        raise ValueError(f"There are no cut-outs (CATEGORY/NAME.png) in {folder}.")
    return cutouts


def compose_scene(background: UInt8Image, cutouts: Sequence[Cutout], rng: np.random.Generator) -> Scene:
    """Paste one cut-out, whole, into `background`; which, how large, where and whether mirrored are drawn.

    Args:
        background: uint8 `[H, W, 3]`.
        cutouts: the subjects to draw from.
        rng: the source of every draw.

    Raises:
        ValueError: there are no cut-outs, or `background` has another shape or type.
    """
    check_photo(background)
    if not cutouts:
        raise ValueError("A scene needs at least one cut-out.")
    height, width = background.shape[:2]
    cutout = cutouts[int(rng.integers(len(cutouts)))]
    place = PLACES[rng.integers(len(PLACES))]
    # A subject on one side must leave room on the other, or the place would not be seen.
    widest = 0.8 if place == "in the middle" else 0.6
    subject_height, subject_width = cutout.rgba.shape[:2]
    scale = rng.uniform(0.7, 1) * min(0.85 * height / subject_height, widest * width / subject_width)
    size = (max(round(subject_width * scale), 1), max(round(subject_height * scale), 1))
    pasted = np.asarray(Image.fromarray(cutout.rgba).resize(size, Image.Resampling.HAMMING, reducing_gap=2.0))
    if rng.random() < 0.5:
        pasted = pasted[:, ::-1]
    across = (PLACES.index(place) * 0.4) + rng.uniform(0, 0.2)
    left = round(across * (width - size[0]))
    top = round(rng.uniform(0.4, 1) * (height - size[1]))
    subject = np.zeros((height, width, 3), np.float32)
    mask = np.zeros((height, width), np.float32)
    subject[top : top + size[1], left : left + size[0]] = pasted[..., :3]
    mask[top : top + size[1], left : left + size[0]] = pasted[..., 3] / np.float32(255)
    image = paste_over(subject, mask, background)
    return Scene(image, background, subject, mask, cutout.noun, place)


def paste_over(subject: FloatPhoto, mask: FloatPhoto, background: UInt8Image) -> UInt8Image:
    """`subject` over `background`, covering `mask` of each pixel; uint8 `[H, W, 3]`."""
    behind = background.astype(np.float32)
    return round_to_uint8(behind + mask[..., None] * (subject - behind))


def round_to_uint8(values: NDArray[np.floating[Any]]) -> UInt8Image:
    """`values` clipped to 0..255 and rounded to uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
