"""Effects that bend, mirror or break the picture."""

import numpy as np
from numpy.random import default_rng

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    centred,
    extent,
    mix,
    nearest,
    palette,
    positions,
    scattered_points,
    smoothstep,
    warp,
)

BEND = "bend the picture"

TURNS = (2.6, -2.6)


def from_polar(image: FloatArray, radius: FloatArray, angle: FloatArray) -> FloatArray:
    """Sample the image at polar positions [H, W] around its middle, radius in units."""
    height, width = extent(image)
    return warp(image, height / 2 + radius * np.sin(angle), width / 2 + radius * np.cos(angle))


def to_polar(image: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the distance in units and the angle [H, W] of each pixel from the middle."""
    y, x = centred(image)
    return np.hypot(y, x), np.arctan2(y, x)


def kaleidoscope(image: FloatArray) -> FloatArray:
    radius, angle = to_polar(image)
    wedge = np.pi / 3
    folded = np.abs(angle % wedge - wedge / 2)
    return from_polar(image, radius, folded + np.pi / 2)


def mirror(image: FloatArray, mode: int) -> FloatArray:
    height, width = image.shape[:2]
    mirrored = image.copy()
    if mode == 0:
        mirrored[:, (width + 1) // 2 :] = image[:, : width // 2][:, ::-1]
    elif mode == 1:
        mirrored[:, : width // 2] = image[:, (width + 1) // 2 :][:, ::-1]
    elif mode == 2:
        mirrored[(height + 1) // 2 :] = image[: height // 2][::-1]
    else:
        mirrored[: height // 2] = image[(height + 1) // 2 :][::-1]
    return mirrored


def swirl(image: FloatArray, mode: int) -> FloatArray:
    radius, angle = to_polar(image)
    return from_polar(image, radius, angle + TURNS[mode] * smoothstep(40, 0, radius))


def fisheye(image: FloatArray) -> FloatArray:
    radius, angle = to_polar(image)
    view = from_polar(image, 34 * (radius / 31) ** 1.8, angle)
    return view * smoothstep(31, 29.5, radius)[..., None]


def ripple(image: FloatArray) -> FloatArray:
    radius, angle = to_polar(image)
    phase = 2 * np.pi * radius / 11
    waved = from_polar(image, radius + 5 * np.sin(phase), angle)
    return waved * (0.85 + 0.35 * np.cos(phase))[..., None]


def tunnel(image: FloatArray) -> FloatArray:
    radius, angle = to_polar(image)
    height, width = extent(image)
    # One turn around the middle shows the picture and its mirror image.
    across = np.abs(angle / np.pi) * width
    depth = height * (1 - np.clip(radius / 42, 0, 1))
    return warp(image, depth, across) * smoothstep(0, 14, radius)[..., None]


def shattered(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    distance, label = nearest(y, x, scattered_points(image, 16, 0.9, default_rng(100)), 2)
    offsets = default_rng(101).uniform(-14, 14, (label.max() + 1, 2))[label[..., 0]]
    gap = smoothstep(1.2, 0.5, distance[..., 1] - distance[..., 0])
    return mix(warp(image, y + offsets[..., 0], x + offsets[..., 1]), palette("eef6ff")[0], gap)


GEOMETRY = (
    PhotoEffect("kaleidoscope", "Six mirrored wedges around the middle", BEND, 1, kaleidoscope),
    PhotoEffect("mirror", "One of the four halves of the photo and its reflection", BEND, 4, mirror),
    PhotoEffect("swirl", "The picture twisted to the left or to the right", BEND, len(TURNS), swirl),
    PhotoEffect("fisheye", "A round, bulging fisheye view on black", BEND, 1, fisheye),
    PhotoEffect("ripple", "Round water ripples that spread from the middle", BEND, 1, ripple),
    PhotoEffect("tunnel", "The picture rolled up to a tunnel with a dark end", BEND, 1, tunnel),
    PhotoEffect("shattered", "A broken mirror with displaced pieces and white cracks", BEND, 1, shattered),
)
