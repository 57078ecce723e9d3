"""Effects that replace the colours of a photo."""

import numpy as np

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    blur,
    contrast,
    gradient_map,
    luminance,
    mix,
    nearest,
    palette,
    positions,
    saturate,
    scattered_points,
    smoothstep,
    texture,
)

COLOUR = "give the photo a colour effect"

DUOTONES = (
    palette("1b1464 ff5c8a"),
    palette("b00020 ffe9d6"),
    palette("004d40 ffd54f"),
    palette("2a0a4a 3de8ff"),
)
GRADIENTS = (
    palette("04102e 7b2d8b ff6b4a ffe29a"),
    palette("fff4d6 ff9a3c c4194e 2a0845"),
    palette("012a1c 0b8f5a 9be15d f5ffcf"),
    palette("f2fbff 6ec6ff 1565c0 02122e"),
    palette("f9f871 2ec4b6 5f0f90 0b0014"),
)
PAINTS = palette("ff1f4b 12c4ff ffd500 31d843")


def thermal(image: FloatArray) -> FloatArray:
    heat = contrast(blur(luminance(image), 0.8), 1.2)
    return gradient_map(heat, palette("05003a 3a00b0 c400a8 ff4a1c ffc400 ffffe0"))


def infrared(image: FloatArray) -> FloatArray:
    foliage = np.clip(1.4 * image[..., 1] + 0.5 * image[..., 0] - 0.7 * image[..., 2], 0, 1)
    swapped = np.stack([foliage, 0.55 * luminance(image) + 0.25 * foliage, image[..., 0] * 0.6], axis=-1)
    return contrast(swapped * palette("ffbfe8")[0] + palette("300818")[0], 1.5)


def x_ray(image: FloatArray) -> FloatArray:
    inverted = 1 - contrast(luminance(image), 1.3)
    return gradient_map(inverted**1.3, palette("020610 18486e 9fd8f0 ffffff"))


def solarised(image: FloatArray) -> FloatArray:
    return contrast(1 - np.abs(2 * saturate(image, 1.5) - 1), 1.3)


def duotone(image: FloatArray, mode: int) -> FloatArray:
    return gradient_map(contrast(luminance(image), 1.3), DUOTONES[mode])


def gradient_colours(image: FloatArray, mode: int) -> FloatArray:
    return gradient_map(contrast(blur(luminance(image), 0.5), 1.2), GRADIENTS[mode])


def paint_splash(image: FloatArray, mode: int) -> FloatArray:
    grey = contrast(luminance(image), 1.6)[..., None] * np.ones(3, dtype=np.float32)
    y, x = positions(image)
    distance, _ = nearest(y, x, scattered_points(image, 20, 0.9, np.random.default_rng(6)))
    splash = smoothstep(9.5, 8.5, distance[..., 0] + 5 * (texture(image, 4, 7) - 0.5))
    return mix(grey, PAINTS[mode] * (0.35 + 0.65 * grey), splash)


PALETTE = (
    PhotoEffect("thermal", "A heat camera picture from dark blue over red to yellow", COLOUR, 1, thermal),
    PhotoEffect(
        "infrared", "A false-colour infrared photo with pink and crimson leaves", COLOUR, 1, infrared
    ),
    PhotoEffect(
        "x-ray", "A glowing blue-white negative of the subject, like an X-ray plate", COLOUR, 1, x_ray
    ),
    PhotoEffect(
        "solarised", "Colours fold back to black in the brightest and darkest parts", COLOUR, 1, solarised
    ),
    PhotoEffect(
        "duotone",
        "The photo printed in one of four pairs of contrasting colours",
        COLOUR,
        len(DUOTONES),
        duotone,
    ),
    PhotoEffect(
        "gradient-map",
        "Tones replaced by one of five colour gradients, some of them inverted",
        COLOUR,
        len(GRADIENTS),
        gradient_colours,
    ),
    PhotoEffect(
        "paint-splash",
        "A black and white photo under round splashes of one of four vivid paints",
        COLOUR,
        len(PAINTS),
        paint_splash,
    ),
)
