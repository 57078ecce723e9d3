"""Effects that imitate screens and broken video."""

import numpy as np
from numpy.random import Generator, default_rng

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    blur,
    cell_mean,
    centred,
    contrast,
    extent,
    grid_labels,
    luminance,
    mix,
    palette,
    positions,
    relative,
    saturate,
    smoothstep,
    stripes,
    texture,
    warp,
)

GLITCH = "glitch the photo"

# Offsets (y, x) in units of the red channel; blue moves the opposite way.
CHANNEL_OFFSETS = ((0, 7), (0, -7), (7, 0), (-7, 0))
BAND_OFFSETS = (20, -20, 34, -8)
BAND_TINTS = palette("40ffd0 ff60c0 ffd040 6080ff")
GLYPHS = (
    "... ... ... ... ...",
    "... ... ... ... .#.",
    "... .#. ... .#. ...",
    "... ... ### ... ...",
    "... .#. ### .#. ...",
    "#.# .#. ### .#. #.#",
    "### #.# #.# #.# ###",
    "### ### #.# ### ###",
)


def rgb_shift(image: FloatArray, mode: int) -> FloatArray:
    y, x = positions(image)
    down, right = CHANNEL_OFFSETS[mode]
    sharp = contrast(image, 1.6)
    red = warp(sharp, y - down, x - right)[..., 0]
    blue = warp(sharp, y + down, x + right)[..., 2]
    return np.stack([red, sharp[..., 1], blue], axis=-1)


def datamosh(image: FloatArray, mode: int) -> FloatArray:
    y, x = positions(image)
    strength = default_rng(90).choice([0.0, 0.5, 1.0], int(y.max() / 5) + 1)[np.floor(y / 5).astype(int)]
    moved = warp(image, y, x + strength * BAND_OFFSETS[mode])
    return mix(moved, saturate(moved, 0.4) * BAND_TINTS[mode] * 1.2, np.minimum(1, 0.5 + strength))


def glitch_blocks(image: FloatArray, rng: Generator) -> FloatArray:
    y, x = positions(image)
    height, width = extent(image)
    broken = contrast(image, 1.2)
    for _ in range(int(rng.integers(9, 16))):
        top, left = rng.uniform(-0.1, 0.9) * height, rng.uniform(-0.2, 0.8) * width
        block = (y > top) & (y < top + rng.uniform(3, 12)) & (x > left) & (x < left + rng.uniform(12, 40))
        moved = np.roll(broken, round(rng.uniform(-0.4, 0.4) * image.shape[1]), axis=1)
        channels = rng.permutation(3)
        broken = np.where(block[..., None], np.abs(rng.integers(2) - moved[..., channels]), broken)
    return broken


def vhs(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    down, _ = relative(image)
    tearing = 9 * (texture(image, 2, 91)[:, :1] - 0.5) * smoothstep(0.78, 0.9, down)
    tape = warp(image, y, x + tearing)
    tone = luminance(tape)
    # Tape stores colour at a lower resolution than brightness, and late.
    chroma = saturate(blur(warp(tape, y, x - 5), 3), 2.2)
    colours = 0.18 + 0.75 * (tone[..., None] + chroma - luminance(chroma)[..., None])
    noise = 0.3 * (texture(image, 1, 92) - 0.4) * smoothstep(0.7, 0.9, down)
    return colours * (0.8 + 0.2 * stripes(image, 2.5, 90))[..., None] + noise[..., None]


def crt(image: FloatArray) -> FloatArray:
    y, x = centred(image)
    bulge = 1 + 0.12 * (y**2 + x**2) / 32**2
    height, width = extent(image)
    curved = warp(contrast(image, 1.2), y * bulge + height / 2, x * bulge + width / 2)
    _, column = positions(image)
    phosphor = np.floor(column % 3)[..., None] == np.arange(3)
    beam = 0.5 + 0.5 * stripes(image, 4, 90)
    glass = (np.abs(y * bulge) < height / 2) & (np.abs(x * bulge) < width / 2)
    return 2.6 * curved * (0.22 + 0.85 * phosphor) * (beam * glass)[..., None]


def pixel_sort(image: FloatArray) -> FloatArray:
    _, x = positions(image)
    runs = np.floor((x + 30 * texture(image, 6, 93)[:, :1]) / 20)
    order = np.argsort(4 * runs - luminance(image), axis=1, kind="stable")
    return contrast(np.take_along_axis(image, order[..., None], axis=1), 1.4)


def ascii_art(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    tone = luminance(cell_mean(contrast(image, 1.4), grid_labels(y, x, 6, 4)))
    patterns = np.zeros((len(GLYPHS), 6, 4))
    for index, glyph in enumerate(GLYPHS):
        patterns[index, :5, :3] = [[dot == "#" for dot in row] for row in glyph.split()]
    level = np.minimum(tone * len(GLYPHS), len(GLYPHS) - 1).astype(int)
    lit = patterns[level, np.floor(y % 6).astype(int), np.floor(x % 4).astype(int)]
    return mix(palette("0a0800")[0], palette("ffb000")[0], lit)


GLITCHES = (
    PhotoEffect(
        "rgb-shift", "Red and blue ghosts that move apart along one of four directions", GLITCH, 4, rgb_shift
    ),
    PhotoEffect("datamosh", "Horizontal bands displaced and tinted in one of four ways", GLITCH, 4, datamosh),
    PhotoEffect(
        "glitch-blocks",
        "Random blocks of the picture moved, inverted and recoloured",
        GLITCH,
        None,
        glitch_blocks,
    ),
    PhotoEffect("vhs", "A worn video tape with bleeding colours and a torn lower edge", GLITCH, 1, vhs),
    PhotoEffect("crt", "An old television tube with colour stripes and scan lines", GLITCH, 1, crt),
    PhotoEffect(
        "pixel-sort", "Rows of pixels sorted from bright to dark in long runs", GLITCH, 1, pixel_sort
    ),
    PhotoEffect("ascii-art", "Amber text characters on a black terminal", GLITCH, 1, ascii_art),
)
