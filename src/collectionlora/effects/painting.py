"""Effects that imitate painting techniques."""

import numpy as np
from numpy.random import Generator, default_rng

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    WHITE,
    blur,
    contrast,
    dominant_colours,
    edges,
    extent,
    gradient_map,
    ink_lines,
    luminance,
    mix,
    nearest,
    noise_field,
    palette,
    positions,
    posterise,
    relief,
    saturate,
    scattered_points,
    smoothstep,
    stripes,
    texture,
    uniform_points,
    warp,
)

PAINT = "turn the photo into a painting"


def oil_painting(image: FloatArray) -> FloatArray:
    paint = saturate(dominant_colours(contrast(image, 1.25), 5), 1.9)
    bristles = relief(luminance(paint) + 0.25 * texture(image, 1.2, 20), 0.5, 2.0)
    return paint * palette("ffedc8")[0] * (0.4 + bristles)[..., None]


def watercolour(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    wobble = 2.5 * (texture(image, 3, 21) - 0.5)
    washes = 0.3 + 0.7 * saturate(dominant_colours(warp(image, y + wobble, x - wobble), 4), 1.7)
    pigment = 1.5 * edges(luminance(washes), 0.6) + 0.2 * texture(image, 6, 22)
    border = np.minimum(np.minimum(y, y.max() - y), np.minimum(x, x.max() - x)) + 6 * texture(image, 4, 23)
    return mix(WHITE, washes * (1.1 - pigment)[..., None], smoothstep(4, 8, border))


def pointillism(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    distance, label = nearest(y, x, scattered_points(image, 3, 0.7, default_rng(24)))
    hue_shift = default_rng(25).uniform(-0.15, 0.15, (label.max() + 1, 3))
    centre = smoothstep(1.8, 1.4, distance[..., 0])
    dots = saturate(blur(image, 1), 2) + hue_shift[label[..., 0]]
    return mix(palette("f5ecd7")[0], dots, centre)


def brush_strokes(image: FloatArray, rng: Generator) -> FloatArray:
    y, x = positions(image)
    angle = rng.uniform(0, np.pi)
    bend = 5 * (noise_field(image, 24, rng) - 0.5)
    points = uniform_points(image, 550, rng)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # Cells that are four times as long as wide, in a turned frame, are the strokes.
    across, along = turn @ np.stack([(y + bend).ravel(), (x - bend).ravel()])
    _, label = nearest(
        across.reshape(y.shape), along.reshape(y.shape) / 4, points @ turn.T / np.array([1, 4])
    )
    height, width = extent(image)
    rows = np.minimum(points[:, 0] / height * image.shape[0], image.shape[0] - 1).astype(int)
    columns = np.minimum(points[:, 1] / width * image.shape[1], image.shape[1] - 1).astype(int)
    paint = saturate(contrast(image, 1.2), 1.8)[rows, columns] * rng.uniform(0.65, 1.35, (len(points), 1))
    return paint[label[..., 0]]


def ink_wash(image: FloatArray) -> FloatArray:
    tone = contrast(blur(luminance(image), 0.8), 1.4) + 0.2 * (texture(image, 5, 26) - 0.5)
    washes = blur(posterise(np.clip(tone, 0, 1), 4), 0.5)
    paper = gradient_map(washes, palette("20242c 6f7780 b9bfc2 f4f0e6"))
    return paper * (1 - 0.8 * ink_lines(luminance(image), 1.4))[..., None]


def swirling_strokes(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    strands = texture(image, 1, 27)[..., None]
    angle = 2 * np.pi * texture(image, 20, 28)
    steps = np.linspace(-4, 4, 9)
    # Averaging noise along the flow draws it as strokes.
    flow = np.mean([warp(strands, y + s * np.sin(angle), x + s * np.cos(angle)) for s in steps], axis=0)
    tone = contrast(blur(luminance(image), 0.7), 1.2) + 1.3 * (flow[..., 0] - 0.5)
    return gradient_map(np.clip(tone, 0, 1), palette("0a1440 1d4ea0 4fa3d1 f2d24b fff6c2"))


def coloured_pencil(image: FloatArray) -> FloatArray:
    strokes = 0.6 * stripes(image, 2.7, 30) + 0.5 * texture(image, 1.5, 29)
    colour = saturate(blur(image, 0.5), 2.2)
    cover = smoothstep(0.15, 0.75, 1.15 - luminance(image) - 0.75 * strokes)
    return mix(palette("fffdf5")[0], 0.25 + 0.75 * colour, cover)


PAINTING = (
    PhotoEffect("oil-painting", "A thick, warm oil painting with visible bristles", PAINT, 1, oil_painting),
    PhotoEffect(
        "watercolour",
        "A light watercolour with wobbly washes and a white paper border",
        PAINT,
        1,
        watercolour,
    ),
    PhotoEffect("pointillism", "A painting made of small round dots of pure colour", PAINT, 1, pointillism),
    PhotoEffect(
        "brush-strokes",
        "A painting of long random brush strokes in one random direction",
        PAINT,
        None,
        brush_strokes,
    ),
    PhotoEffect("ink-wash", "A grey ink wash painting with soft layers on rice paper", PAINT, 1, ink_wash),
    PhotoEffect(
        "swirling-strokes", "A night-blue and yellow painting of swirling strokes", PAINT, 1, swirling_strokes
    ),
    PhotoEffect(
        "coloured-pencil", "Slanted coloured pencil strokes on white paper", PAINT, 1, coloured_pencil
    ),
)
