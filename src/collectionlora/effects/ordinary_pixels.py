"""What the ordinary edits do to pixels: pure functions of a photo or a scene and of the words drawn.

Photos are uint8 `[H, W, 3]`. Lengths are fractions of the photo's short side, so that an edit looks alike at
any size. The table of edits and their phrasings is in `ordinary_kinds.py`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from .crops import FloatPhoto, Scene, UInt8Image, paste_over, round_to_uint8

COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (230, 30, 30),
    "orange": (245, 140, 20),
    "yellow": (245, 225, 40),
    "green": (40, 180, 60),
    "cyan": (30, 200, 220),
    "blue": (40, 80, 230),
    "purple": (140, 50, 210),
    "pink": (245, 110, 180),
}
AMOUNTS = ("a little", "", "a lot")  # "brighten the photo" without an amount means the middle one
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


# --- photometric ---


def by_amount(amount: str, little: float, middle: float, lot: float) -> float:
    """The number that `amount`, one of `AMOUNTS`, stands for."""
    return (little, middle, lot)[AMOUNTS.index(amount)]


def luma(photo: UInt8Image | FloatPhoto) -> FloatPhoto:
    """Brightness, `[H, W, 1]` in 0..255."""
    return (photo.astype(np.float32) @ LUMA)[..., None]


def scale_brightness(photo: UInt8Image, factor: float) -> UInt8Image:
    """Multiply every channel."""
    return round_to_uint8(photo.astype(np.float32) * factor)


def scale_contrast(photo: UInt8Image, factor: float) -> UInt8Image:
    """Multiply the distance from middle grey."""
    return round_to_uint8(128 + (photo.astype(np.float32) - 128) * factor)


def scale_saturation(photo: UInt8Image, factor: float) -> UInt8Image:
    """Multiply the distance from the grey photo."""
    grey = luma(photo)
    return round_to_uint8(grey + (photo - grey) * np.float32(factor))


def make_grey(photo: UInt8Image) -> UInt8Image:
    """Three equal channels of the same brightness."""
    return round_to_uint8(np.repeat(luma(photo), 3, axis=2))


def scale_channels(photo: UInt8Image, red: float, green: float, blue: float) -> UInt8Image:
    """Multiply each channel by its own factor."""
    return round_to_uint8(photo.astype(np.float32) * np.array([red, green, blue], np.float32))


def warm(photo: UInt8Image, amount: str) -> UInt8Image:
    """More red, less blue."""
    strength = by_amount(amount, 0.12, 0.25, 0.45)
    return scale_channels(photo, 1 + strength, 1, 1 - strength)


def cool(photo: UInt8Image, amount: str) -> UInt8Image:
    """More blue, less red."""
    strength = by_amount(amount, 0.12, 0.25, 0.45)
    return scale_channels(photo, 1 - strength, 1, 1 + strength)


def tint(photo: UInt8Image, colour: str) -> UInt8Image:
    """As through a coloured glass."""
    red, green, blue = (0.3 + 0.8 * value / 255 for value in COLOURS[colour])
    return scale_channels(photo, red, green, blue)


def blur_by(photo: UInt8Image, fraction: float) -> FloatPhoto:
    """Gaussian blur; sigma is `fraction` of the short side."""
    sigma = fraction * min(photo.shape[:2])
    return ndimage.gaussian_filter(photo.astype(np.float32), (sigma, sigma, 0), truncate=3, mode="nearest")


def blur(photo: UInt8Image, amount: str) -> UInt8Image:
    """Gaussian blur."""
    return round_to_uint8(blur_by(photo, by_amount(amount, 0.012, 0.025, 0.05)))


def sharpen(photo: UInt8Image, amount: str) -> UInt8Image:
    """Unsharp mask."""
    strength = np.float32(by_amount(amount, 0.7, 1.4, 2.5))
    return round_to_uint8(photo + strength * (photo.astype(np.float32) - blur_by(photo, 0.02)))


def fade(photo: UInt8Image) -> UInt8Image:
    """Lifted blacks, weak contrast and weak colours, like an old print."""
    grey = luma(photo)
    return round_to_uint8(90 + 0.6 * (grey + 0.6 * (photo - grey)))


def radius_map(height: int, width: int) -> FloatPhoto:
    """Distance from the centre, `[height, width]`: 1 at the middle of each edge."""
    down = (np.arange(height, dtype=np.float32) + 0.5) * 2 / height - 1
    across = (np.arange(width, dtype=np.float32) + 0.5) * 2 / width - 1
    return np.hypot(down[:, None], across[None])


def vignette(photo: UInt8Image) -> UInt8Image:
    """Darken towards the corners."""
    return round_to_uint8(photo * np.clip(1.25 - 0.75 * radius_map(*photo.shape[:2]) ** 2, 0.1, 1)[..., None])


# --- spatial ---


def quarter_turn(photo: UInt8Image, turns: int) -> UInt8Image:
    """Turn by 90 degrees, counter-clockwise for positive `turns`."""
    if photo.shape[0] != photo.shape[1]:
        raise ValueError("A quarter turn needs a square photo.")
    return np.ascontiguousarray(np.rot90(photo, turns))


def fill_like(photo: UInt8Image, colour: str) -> UInt8Image:
    """A plain photo of the same size."""
    return np.full_like(photo, np.array(COLOURS[colour], np.uint8))


def zoom_in(photo: UInt8Image, amount: str) -> UInt8Image:
    """Enlarge the middle of the photo."""
    height, width = photo.shape[:2]
    keep = 1 / by_amount(amount, 1.25, 1.6, 2.5)
    box = (width * (1 - keep) / 2, height * (1 - keep) / 2, width * (1 + keep) / 2, height * (1 + keep) / 2)
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC, box=box))


def zoom_out(photo: UInt8Image, colour: str) -> UInt8Image:
    """Shrink the photo to half, in the middle of a plain colour."""
    height, width = photo.shape[:2]
    small = np.asarray(Image.fromarray(photo).resize((width // 2, height // 2), Image.Resampling.HAMMING))
    target = fill_like(photo, colour)
    top, left = (height - height // 2) // 2, (width - width // 2) // 2
    target[top : top + height // 2, left : left + width // 2] = small
    return target


def border(photo: UInt8Image, thickness: str, colour: str) -> UInt8Image:
    """Cover the photo's edge with a frame."""
    size = max(round({"thin": 0.05, "thick": 0.14}[thickness] * min(photo.shape[:2])), 1)
    target = fill_like(photo, colour)
    target[size:-size, size:-size] = photo[size:-size, size:-size]
    return target


def shift(photo: UInt8Image, side: str) -> UInt8Image:
    """Move the photo by a quarter of its width; what it uncovers is black."""
    step = max(photo.shape[1] // 4, 1)
    target = np.zeros_like(photo)
    if side == "left":
        target[:, :-step] = photo[:, step:]
    else:
        target[:, step:] = photo[:, :-step]
    return target


def circle(photo: UInt8Image, colour: str) -> UInt8Image:
    """Keep the largest circle in the middle."""
    height, width = photo.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = (slice(top, top + short), slice(left, left + short))
    target = fill_like(photo, colour)
    target[square] = np.where(radius_map(short, short)[..., None] <= 1, photo[square], target[square])
    return target


# --- subject ---


def recolour(scene: Scene, colour: str) -> UInt8Image:
    """Give the subject one hue, from its shadows over `colour` to its highlights."""
    tone = 0.25 + 0.6 * luma(scene.subject) / 255
    hue = np.array(COLOURS[colour], np.float32)
    painted = np.where(tone < 0.5, hue * 2 * tone, hue + (255 - hue) * (2 * tone - 1))
    return paste_over(painted, scene.mask, scene.background)


def on_background(scene: Scene, background: UInt8Image) -> UInt8Image:
    """The subject over another background."""
    return paste_over(scene.subject, scene.mask, background)
