"""Effects that imitate film stocks and old photographic processes."""

import numpy as np
from numpy.random import Generator

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    WHITE,
    blur,
    centred,
    contrast,
    gradient_map,
    luminance,
    mix,
    nearest,
    noise_field,
    palette,
    positions,
    relative,
    saturate,
    screen,
    smoothstep,
    uniform_points,
)

FILM = "apply a vintage film look"

# Each row holds the exponents and offsets of the red, green and blue curves.
CROSS_PROCESSES = np.array(
    [
        [[0.7, 0.6, 2.2], [0.0, 0.05, -0.05]],
        [[1.8, 2.2, 0.45], [0.05, -0.1, 0.25]],
        [[0.4, 1.9, 2.0], [0.2, -0.05, -0.05]],
    ],
    dtype=np.float32,
)
LEAK_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


def sepia(image: FloatArray) -> FloatArray:
    y, x = centred(image)
    vignette = smoothstep(62, 20, np.hypot(y, x))
    toned = gradient_map(contrast(luminance(image), 1.2), palette("2a1305 85501c dfae62 ffe6b0"))
    return toned * (0.45 + 0.55 * vignette)[..., None]


def faded_film(image: FloatArray) -> FloatArray:
    washed = 0.36 + 0.5 * saturate(blur(image, 0.4), 0.55)
    return washed * palette("fff0dc")[0] + palette("1a0d26")[0]


def bleach_bypass(image: FloatArray) -> FloatArray:
    silver = contrast(luminance(image), 3)
    return mix(saturate(image, 0.35), silver[..., None] * palette("e9f2f5")[0], 0.8)


def technicolor(image: FloatArray) -> FloatArray:
    red = contrast(image[..., 0], 1.4)
    cyan = contrast((image[..., 1] + image[..., 2]) / 2, 1.4)
    difference = red - cyan
    strips = np.stack([cyan + 1.3 * difference, cyan - 0.5 * difference, cyan - 0.3 * difference], axis=-1)
    return 0.12 + strips * palette("f0e0b0")[0] - palette("001a1a")[0]


def cross_processed(image: FloatArray, mode: int) -> FloatArray:
    exponents, offsets = CROSS_PROCESSES[mode]
    return contrast(contrast(image, 1.15) ** exponents + offsets, 1.25)


def film_dust(image: FloatArray, rng: Generator) -> FloatArray:
    y, x = positions(image)
    grain = noise_field(image, 1, rng) - 0.5
    tone = contrast(luminance(image), 1.4) + 0.45 * grain
    specks, _ = nearest(y, x, uniform_points(image, 18, rng))
    dust = smoothstep(1.2, 0.6, specks[..., 0])
    scratches = np.zeros_like(tone)
    for _ in range(int(rng.integers(2, 6))):
        middle = rng.random() * x.max() + 2 * np.sin(y / rng.uniform(10, 30))
        scratches = np.maximum(scratches, 0.8 * smoothstep(0.6, 0.2, np.abs(x - middle)))
    frame = gradient_map(tone, palette("14120f 8b857a f2ece0"))
    return mix(frame, WHITE, np.maximum(dust, scratches))


def light_leak(image: FloatArray, mode: int) -> FloatArray:
    bottom, right = LEAK_CORNERS[mode]
    y, x = relative(image)
    distance = np.hypot(y - bottom, x - right)
    faded = 0.12 + 0.65 * saturate(image, 0.6)
    leak = gradient_map(smoothstep(1.0, 0.05, distance), palette("000000 8a0c10 ff5a1a ffc64a fff3c0"))
    return screen(faded, leak)


FILM_EFFECTS = (
    PhotoEffect("sepia", "A brown sepia photograph of the subject with dark corners", FILM, 1, sepia),
    PhotoEffect(
        "faded-film", "A washed-out, low-contrast colour print with lifted pink blacks", FILM, 1, faded_film
    ),
    PhotoEffect(
        "bleach-bypass", "A harsh, silvery, almost colourless high-contrast photo", FILM, 1, bleach_bypass
    ),
    PhotoEffect("technicolor", "An early two-colour film in vivid red and turquoise", FILM, 1, technicolor),
    PhotoEffect(
        "cross-processed",
        "A photo with the strong false colour cast of one of three wrong developers",
        FILM,
        len(CROSS_PROCESSES),
        cross_processed,
    ),
    PhotoEffect(
        "film-dust", "A grainy black and white film frame with dust and scratches", FILM, None, film_dust
    ),
    PhotoEffect(
        "light-leak",
        "A faded photo with an orange light leak from one of the four corners",
        FILM,
        len(LEAK_CORNERS),
        light_leak,
    ),
)
