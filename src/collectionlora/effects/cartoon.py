"""Effects that turn a photo into flat graphics."""

import numpy as np
from numpy.random import Generator, default_rng
from skimage.color import hsv2rgb, rgb2hsv

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    WHITE,
    blur,
    cell_mean,
    contrast,
    dominant_colours,
    dot_screen,
    gradient_map,
    grid_labels,
    ink_lines,
    local,
    luminance,
    mix,
    noise_field,
    palette,
    positions,
    posterise,
    saturate,
    smoothstep,
    texture,
)

CARTOON = "make it a cartoon"

POP_PALETTES = (
    palette("240046 e5007d ff9e00 fff300"),
    palette("0b3d0b 00a6a6 ff4fa3 fdf6e3"),
    palette("8d0801 f72585 4cc9f0 caf0f8"),
    palette("001eff 00c853 ffee00 ff6d00"),
)


def comic(image: FloatArray) -> FloatArray:
    flat = saturate(posterise(contrast(dominant_colours(image, 3), 1.3), 4), 1.6)
    tone = luminance(image)
    dots = smoothstep(0.45, 0.6, dot_screen(image, 4, 45)) * smoothstep(0.75, 0.6, tone)
    inked = mix(flat, palette("14112b")[0], 0.45 * dots)
    return mix(inked, palette("05050a")[0], ink_lines(tone, 0.7))


def cel_shading(image: FloatArray) -> FloatArray:
    hsv = rgb2hsv(blur(dominant_colours(image, 3), 0.5))
    hsv[..., 1] = np.clip(hsv[..., 1] * 1.8, 0, 1)
    hsv[..., 2] = 0.35 + 0.65 * posterise(contrast(hsv[..., 2], 1.2), 3)
    return mix(hsv2rgb(hsv), palette("2a1538")[0], ink_lines(luminance(image), 1.1))


def pop_art(image: FloatArray, mode: int) -> FloatArray:
    bands = posterise(contrast(blur(luminance(image), 0.8), 1.5), len(POP_PALETTES[mode]))
    return gradient_map(bands, POP_PALETTES[mode])


def posterised(image: FloatArray) -> FloatArray:
    return posterise(saturate(blur(image, 0.7), 1.5), 2)


def low_poly(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    # Each square of an unevenly bent grid is cut along one of its diagonals, in turn.
    down, right = y + 7 * texture(image, 8, 30), x + 7 * texture(image, 8, 31)
    turn = (-1) ** (np.floor(down / 8) + np.floor(right / 8))
    labels = grid_labels(down, right, 8, 8) * 2 + (local(down, 8) > turn * local(right, 8))
    facets = default_rng(32).uniform(0.7, 1.3, labels.max() + 1)
    return saturate(cell_mean(contrast(image, 1.2), labels), 1.6) * facets[labels][..., None]


def scribble(image: FloatArray, rng: Generator) -> FloatArray:
    tone = contrast(blur(luminance(image), 0.6), 1.3)
    y, x = positions(image)
    angle = rng.uniform(0, np.pi)
    wander = 3 * blur(noise_field(image, 10, rng), 1.5)
    loops = 0.5 + 0.5 * np.cos(2 * np.pi * ((x * np.cos(angle) + y * np.sin(angle)) / 3.2 + wander))
    return mix(WHITE, palette("1b1b8f")[0], smoothstep(-0.25, 0.25, loops * 0.9 - tone))


def topographic_map(image: FloatArray) -> FloatArray:
    height = blur(luminance(image), 1.5)
    land = gradient_map(posterise(height, 8), palette("2b6a99 7fc8c0 7bb662 e8d98a c58b4e ffffff"))
    bands = np.minimum(np.floor(height * 8), 7)
    contours = np.maximum(
        np.abs(np.diff(bands, axis=0, prepend=bands[:1])),
        np.abs(np.diff(bands, axis=1, prepend=bands[:, :1])),
    )
    return mix(land, palette("4a2c1a")[0], 0.75 * np.minimum(contours, 1))


CARTOONS = (
    PhotoEffect("comic", "A comic book panel with black outlines and printed dots", CARTOON, 1, comic),
    PhotoEffect(
        "cel-shading", "An animated film frame with three flat brightness steps", CARTOON, 1, cel_shading
    ),
    PhotoEffect(
        "pop-art",
        "Four flat bands of colour from one of four loud palettes",
        CARTOON,
        len(POP_PALETTES),
        pop_art,
    ),
    PhotoEffect("posterised", "Every part in one of the eight pure screen colours", CARTOON, 1, posterised),
    PhotoEffect("low-poly", "The subject built of flat triangular facets", CARTOON, 1, low_poly),
    PhotoEffect(
        "scribble",
        "Wandering blue ballpoint lines in a random direction that thicken in the shadows",
        CARTOON,
        None,
        scribble,
    ),
    PhotoEffect(
        "topographic-map", "A map with contour lines and bands of land colours", CARTOON, 1, topographic_map
    ),
)
