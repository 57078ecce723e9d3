"""Effects that fill the photo with festive things."""

import numpy as np
from numpy.random import Generator
from skimage.color import hsv2rgb

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    WHITE,
    blur,
    contrast,
    extent,
    luminance,
    mix,
    nearest,
    palette,
    positions,
    relative,
    saturate,
    scattered_points,
    screen,
    smoothstep,
    uniform_points,
    warp,
)

PARTY = "make it a party"

BEAMS = (palette("ff1a6b 18e0ff ffd21a"), palette("18e0ff ffd21a ff1a6b"), palette("ffd21a ff1a6b 18e0ff"))


def confetti(image: FloatArray, rng: Generator) -> FloatArray:
    y, x = positions(image)
    points = scattered_points(image, 9, 0.9, rng)
    _, label = nearest(y, x, points)
    piece = label[..., 0]
    angle = rng.uniform(0, np.pi, len(points))[piece]
    down, right = y - points[piece, 0], x - points[piece, 1]
    along = np.abs(right * np.cos(angle) + down * np.sin(angle))
    across = np.abs(down * np.cos(angle) - right * np.sin(angle))
    covered = smoothstep(2.7, 2.2, along) * smoothstep(1.8, 1.3, across)
    colours = hsv2rgb(np.stack([rng.random(len(points)), *np.full((2, len(points)), 0.95)], axis=-1))
    return mix(saturate(image, 1.3) * 0.85, colours[piece], covered)


def bubbles(image: FloatArray, rng: Generator) -> FloatArray:
    y, x = positions(image)
    points = scattered_points(image, 20, 0.6, rng)
    distance, label = nearest(y, x, points)
    middle = points[label[..., 0]]
    radius = distance[..., 0] / rng.uniform(5, 10, len(points))[label[..., 0]]
    down, right = y - middle[..., 0], x - middle[..., 1]
    inside = smoothstep(1.05, 0.95, radius)
    # A bubble shows the scene upside down, with an iridescent rim and a highlight.
    lens = warp(image, middle[..., 0] - 1.6 * down, middle[..., 1] - 1.6 * right)
    sheen = 0.5 + 0.5 * np.cos(3 * np.arctan2(down, right)[..., None] + np.array([0.0, 2.1, 4.2]))
    rim = (smoothstep(0.45, 1, radius) * inside)[..., None]
    shine = smoothstep(1.6, 0.8, np.hypot(down + 2.2, right + 2.2)) * inside
    scene = mix(0.55 * image + palette("10305a")[0], 0.35 + 0.65 * lens, inside)
    return mix(screen(scene, 0.9 * rim * sheen), WHITE, shine)


def bokeh(image: FloatArray, rng: Generator) -> FloatArray:
    y, x = positions(image)
    points = uniform_points(image, 22, rng)
    distances, labels = nearest(y, x, points, 2)
    radii = rng.uniform(3, 8, len(points))
    tints = palette("ffb347 ff5e7e ffd9a0 5ec8ff c78bff")[rng.integers(5, size=len(points))]
    lights = 0.8 * blur(image, 1.2)
    for k in range(2):
        radius = distances[..., k] / radii[labels[..., k]]
        disc = smoothstep(1.05, 0.92, radius) * (0.55 + 0.35 * smoothstep(0.6, 1, radius))
        lights = screen(lights, disc[..., None] * tints[labels[..., k]])
    return lights


def fireworks(image: FloatArray, rng: Generator) -> FloatArray:
    y, x = positions(image)
    height, width = extent(image)
    scene = 0.55 * contrast(image, 1.2) * palette("8090d0")[0]
    for _ in range(int(rng.integers(3, 6))):
        down, right = y - rng.uniform(0.1, 0.8) * height, x - rng.uniform(0.1, 0.9) * width
        radius = np.hypot(down, right) / rng.uniform(11, 20)
        rays = 0.5 + 0.5 * np.cos(int(rng.integers(9, 16)) * np.arctan2(down, right) + rng.uniform(0, 6))
        sparks = rays**3 * smoothstep(0.1, 0.8, radius) * smoothstep(1.1, 0.9, radius)
        tint = hsv2rgb(np.array([rng.random(), 0.8, 1.0]))
        scene = screen(scene, sparks[..., None] * tint)
        scene = screen(scene, smoothstep(0.25, 0, radius)[..., None] * WHITE)
    return scene


def stage_lights(image: FloatArray, mode: int) -> FloatArray:
    y, x = relative(image)
    tone = luminance(image)[..., None]
    scene = 0.3 * tone * WHITE
    for colour, top, foot in zip(BEAMS[mode], (0.05, 0.5, 0.95), (0.3, 0.5, 0.7), strict=True):
        off_axis = np.abs(x - (top + (foot - top) * y))
        beam = smoothstep(0.12 + 0.12 * y, 0.04 + 0.06 * y, off_axis)
        scene = scene + beam[..., None] * (0.25 + 0.75 * tone) * colour
    return scene


PARTIES = (
    PhotoEffect("confetti", "Random colourful paper confetti in front of the subject", PARTY, None, confetti),
    PhotoEffect("bubbles", "Random big soap bubbles that show the scene upside down", PARTY, None, bubbles),
    PhotoEffect("bokeh", "A blurred dark photo with random discs of coloured light", PARTY, None, bokeh),
    PhotoEffect("fireworks", "Random fireworks over the subject at night", PARTY, None, fireworks),
    PhotoEffect(
        "stage-lights",
        "Three coloured light beams on a dark stage, in one of three orders",
        PARTY,
        len(BEAMS),
        stage_lights,
    ),
)
