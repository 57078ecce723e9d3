"""Effects that change the weather, the season or the surroundings."""

import numpy as np
from numpy.random import Generator

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    WHITE,
    blur,
    contrast,
    extent,
    gradient_map,
    luminance,
    mix,
    nearest,
    palette,
    positions,
    relative,
    saturate,
    screen,
    smoothstep,
    texture,
    uniform_points,
    warp,
)

WEATHER = "add weather to the photo"

SEASONS = (
    palette("3c1a3a c94f8c ffb7d5 fff3f8"),
    palette("0c3a14 2f8f2f b7d84a fffbd0"),
    palette("2b0d05 a83210 f08a1d ffe1a0"),
    palette("0e2a4a 6c9cc4 dcecf7 ffffff"),
)


def snow(image: FloatArray, rng: Generator) -> FloatArray:
    y, x = positions(image)
    points = uniform_points(image, 110, rng)
    distance, label = nearest(y, x, points)
    radius = rng.uniform(0.7, 2.4, len(points))[label[..., 0]]
    flakes = smoothstep(radius + 0.4, radius - 0.4, distance[..., 0])
    cold = mix(0.2 + 0.7 * saturate(image, 0.35) * palette("c8dcff")[0], WHITE, 0.15)
    return mix(cold, WHITE, flakes)


def rain(image: FloatArray, rng: Generator) -> FloatArray:
    y, x = positions(image)
    slant = rng.uniform(-0.5, 0.5)
    shear = np.array([[1 / 7, 0], [-slant, 1]])
    points = uniform_points(image, 100, rng)
    # In sheared and shortened coordinates, round drops become long streaks.
    distance, _ = nearest(y / 7, x - slant * y, points @ shear.T)
    streaks = smoothstep(0.85, 0.35, distance[..., 0])
    gloomy = 0.8 * saturate(blur(image, 0.5), 0.3) * palette("b4c4d8")[0]
    return mix(gloomy, palette("e4eef8")[0], 0.8 * streaks)


def fog(image: FloatArray) -> FloatArray:
    y, _ = relative(image)
    banks = blur(texture(image, 14, 80), 2)
    density = 0.3 + 0.5 * y + 0.8 * (banks - 0.5)
    return mix(saturate(blur(image, 0.8), 0.5), palette("d5dbe0")[0], np.clip(density, 0, 0.9))


def underwater(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    swayed = warp(image, y + 1.5 * np.sin(x / 5), x + 1.5 * np.sin(y / 4))
    depth, _ = relative(image)
    water = gradient_map(contrast(luminance(swayed), 1.1), palette("001a33 00607a 19b5b0 c8fff0"))
    caustics = smoothstep(0.08, 0.0, np.abs(blur(texture(image, 9, 81), 1) - 0.5)) * (1 - depth)
    return screen(water * (1.15 - 0.6 * depth)[..., None], 0.5 * caustics[..., None] * palette("c0fff0")[0])


def sandstorm(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    # Noise stretched along the wind, slightly upwards.
    gusts = texture(image, 6, 82)
    wind = np.mean([warp(gusts[..., None], y + 0.2 * s, x + s) for s in np.linspace(-9, 9, 7)], axis=0)[
        ..., 0
    ]
    dust = np.clip(0.35 + 1.8 * (wind - 0.5), 0.1, 0.9)
    scene = gradient_map(blur(luminance(image), 0.8), palette("3a1a05 a8662a e8b878"))
    return mix(scene, palette("d99a4e")[0], dust)


def season(image: FloatArray, mode: int) -> FloatArray:
    tone = contrast(luminance(image), 1.2) + 0.2 * (texture(image, 2, 83) - 0.5)
    return mix(gradient_map(np.clip(tone, 0, 1), SEASONS[mode]), saturate(image, 1.2), 0.2)


def lightning(image: FloatArray, rng: Generator) -> FloatArray:
    y, x = positions(image)
    height, width = extent(image)
    stormy = gradient_map(0.75 * luminance(image), palette("05060f 2a2f55 7d86b8"))
    knots = np.linspace(0, height, 12)
    for strength in (1.0, 0.6):
        path = rng.uniform(0.15, 0.85) * width + np.cumsum(rng.uniform(-6, 6, len(knots)))
        distance = np.abs(x - np.interp(y, knots, path))
        bolt = strength * smoothstep(1.6, 0.5, distance)
        halo = 0.7 * strength * np.exp(-distance / 7)
        stormy = mix(screen(stormy, halo[..., None] * palette("a78bff")[0]), WHITE, bolt)
    return stormy


WEATHERS = (
    PhotoEffect("snow", "The subject in random falling snow on a cold day", WEATHER, None, snow),
    PhotoEffect("rain", "The subject on a gloomy day behind random streaks of rain", WEATHER, None, rain),
    PhotoEffect("fog", "The subject in thick pale fog that is denser near the ground", WEATHER, 1, fog),
    PhotoEffect("underwater", "The subject under turquoise water with light ripples", WEATHER, 1, underwater),
    PhotoEffect("sandstorm", "The subject in an orange desert sandstorm", WEATHER, 1, sandstorm),
    PhotoEffect(
        "season",
        "The colours of spring, summer, autumn or winter over the photo",
        WEATHER,
        len(SEASONS),
        season,
    ),
    PhotoEffect("lightning", "A dark violet storm with random bolts of lightning", WEATHER, None, lightning),
)
