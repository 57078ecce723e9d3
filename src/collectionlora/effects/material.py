"""Effects that remake the subject in stone, metal, glass or wood."""

import numpy as np
from numpy.random import default_rng

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    blur,
    contrast,
    edges,
    gradient_map,
    luminance,
    mix,
    nearest,
    palette,
    positions,
    relief,
    scattered_points,
    screen,
    smoothstep,
    texture,
    warp,
)

MATERIAL = "make it out of another material"

STATUES = (
    palette("020206 14141f 3c4058 d5e0ff"),
    palette("4f525e b4b7c2 f1f1f3 ffffff"),
    palette("01180f 0a5c3d 3fa878 d6ffe6"),
)


def emboss(image: FloatArray) -> FloatArray:
    grain = 0.12 * (texture(image, 1, 60) - 0.5)
    return (relief(luminance(image), 0.7, 3) + grain)[..., None] * palette("e6e2dc")[0]


def gold_foil(image: FloatArray) -> FloatArray:
    crumpled = luminance(image) + 0.15 * texture(image, 5, 61)
    # Folding the tone over twice gives the bright bands of polished metal.
    bands = 0.5 - 0.5 * np.cos(3 * np.pi * blur(crumpled, 0.8))
    shine = 0.55 * bands + 0.45 * relief(crumpled, 0.8, 4)
    return gradient_map(shine, palette("2b1600 8a5a00 d9a520 ffe680 fffbe0"))


def ice(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    distance, _ = nearest(y, x, scattered_points(image, 14, 0.9, default_rng(62)), 2)
    cracks = smoothstep(1.0, 0.3, distance[..., 1] - distance[..., 0])
    tone = 0.6 * contrast(luminance(image), 1.2) + 0.5 * relief(luminance(image), 0.8, 4)
    frozen = gradient_map(np.clip(tone, 0, 1), palette("0b3c6f 3a8fc7 a8dff5 ffffff"))
    return screen(frozen, 0.7 * cracks[..., None] * palette("d8f6ff")[0])


def frosted_glass(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    bumps_y, bumps_x = texture(image, 2, 63), texture(image, 2, 64)
    scattered = warp(image, y + 5 * (bumps_y - 0.5), x + 5 * (bumps_x - 0.5))
    return mix(scattered, palette("dff3ee")[0], 0.2 + 0.3 * bumps_y)


def statue(image: FloatArray, mode: int) -> FloatArray:
    tone = luminance(image)
    veins = smoothstep(0.06, 0.0, np.abs(blur(texture(image, 12, 65), 0.5) - 0.5))
    lit = 0.4 * contrast(blur(tone, 1), 1.2) + 0.8 * relief(blur(tone, 0.5), 0.8, 3.5)
    return gradient_map(np.clip(lit - 0.1 - 0.18 * veins, 0, 1), STATUES[mode])


def wood_carving(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    rings = 0.5 + 0.5 * np.cos(2 * np.pi * (y / 5 + 3 * texture(image, 20, 66) + 0.02 * x))
    carved = 0.65 * luminance(image) + 0.8 * relief(luminance(image), 1, 3) - 0.4
    return gradient_map(np.clip(carved + 0.3 * rings, 0, 1), palette("2a1205 6b3714 b3702f e8b878"))


def chrome(image: FloatArray) -> FloatArray:
    tone = blur(luminance(image), 1.2)
    horizon = 0.5 + 0.5 * np.sin(2 * np.pi * 2.2 * tone)
    metal = gradient_map(horizon, palette("05070d 3b4a5e dfe8f2 6f86a6 ffffff"))
    return metal * (1 - np.clip(2 * edges(luminance(image), 0.7), 0, 0.5))[..., None]


MATERIALS = (
    PhotoEffect("emboss", "A shallow relief pressed into grey stone", MATERIAL, 1, emboss),
    PhotoEffect("gold-foil", "The subject stamped in crumpled, gleaming gold foil", MATERIAL, 1, gold_foil),
    PhotoEffect("ice", "The subject frozen in cracked blue ice", MATERIAL, 1, ice),
    PhotoEffect("frosted-glass", "The subject behind pale, bumpy bathroom glass", MATERIAL, 1, frosted_glass),
    PhotoEffect(
        "statue",
        "A statue of the subject in black obsidian, white marble or jade",
        MATERIAL,
        len(STATUES),
        statue,
    ),
    PhotoEffect(
        "wood-carving", "The subject carved into brown wood with visible rings", MATERIAL, 1, wood_carving
    ),
    PhotoEffect("chrome", "The subject poured from liquid, mirror-bright chrome", MATERIAL, 1, chrome),
)
