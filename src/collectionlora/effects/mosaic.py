"""Effects that build the photo from equal or irregular pieces."""

import numpy as np
from numpy.random import default_rng

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    cell_mean,
    contrast,
    grid_labels,
    local,
    mix,
    nearest,
    palette,
    positions,
    posterise,
    saturate,
    scattered_points,
    smoothstep,
)

MOSAIC = "make it a mosaic"


def mosaic_tiles(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    labels = grid_labels(y, x, 5, 5)
    shade = default_rng(40).uniform(0.7, 1.3, labels.max() + 1)[labels]
    tiles = saturate(cell_mean(image, labels), 1.4) * shade[..., None]
    grout = (y % 5 < 1) | (x % 5 < 1)
    return mix(tiles, palette("e9e4d8")[0], 0.85 * grout)


def stained_glass(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    distance, label = nearest(y, x, scattered_points(image, 9, 0.8, default_rng(41)), 2)
    glass = saturate(contrast(cell_mean(image, label[..., 0]), 1.3), 2.4) * 1.2
    lead = smoothstep(1.4, 0.7, distance[..., 1] - distance[..., 0])
    return mix(glass * (1.1 - 0.05 * distance[..., :1]), palette("0a0a0c")[0], lead)


def hex_tiles(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    points = scattered_points(image, 7, 0, default_rng(0))
    points[:, 1] += 3.5 * (np.floor(points[:, 0] / 7) % 2)
    distance, label = nearest(y, x, points, 2)
    border = distance[..., 1] - distance[..., 0]
    bevel = 0.75 + 0.5 * smoothstep(0, 5, border)
    tiles = saturate(cell_mean(image, label[..., 0]), 1.3) * bevel[..., None]
    return mix(tiles, palette("10304a")[0], smoothstep(1.4, 0.6, border))


def pixel_art(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    blocks = cell_mean(saturate(contrast(image, 1.4), 1.8), grid_labels(y, x, 4, 4))
    checker = (np.floor(y / 4) + np.floor(x / 4)) % 2 - 0.5
    return posterise(np.clip(blocks + 0.2 * checker[..., None], 0, 1), 3)


def toy_bricks(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    plates = posterise(saturate(contrast(cell_mean(image, grid_labels(y, x, 8, 8)), 1.3), 1.6), 4)
    down, right = local(y, 8), local(x, 8)
    radius = np.hypot(down, right)
    rim = smoothstep(0.1, 0.0, np.abs(radius - 0.3)) * (-(down + right) / np.maximum(radius, 0.1))
    seam = np.maximum(np.abs(down), np.abs(right)) > 0.42
    shaded = 0.08 + 0.8 * plates + 0.28 * rim[..., None] + 0.06 * (radius < 0.3)[..., None]
    return shaded * (1 - 0.45 * seam)[..., None]


def led_board(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    lamps = saturate(contrast(cell_mean(image, grid_labels(y, x, 4, 4)), 1.3), 1.8)
    radius = np.hypot(local(y, 4), local(x, 4))
    glow = smoothstep(0.52, 0.25, radius)[..., None]
    return lamps * glow * 1.25 + 0.05


def bead_curtain(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    sway = 0.8 * np.sin(y / 8)
    column = np.floor((x + sway) / 3)
    down = y + 2.5 * (column % 2)
    beads = saturate(cell_mean(image, grid_labels(down, x + sway, 5, 3)), 1.7)
    radius = np.hypot(local(down, 5), local(x + sway, 3))
    shine = smoothstep(0.3, 0, np.hypot(local(down, 5) + 0.15, local(x + sway, 3) + 0.15))
    return mix(palette("f2d9e6")[0], beads * 0.85 + 0.5 * shine[..., None], smoothstep(0.52, 0.4, radius))


MOSAICS = (
    PhotoEffect("mosaic-tiles", "Small square stone tiles with pale joints", MOSAIC, 1, mosaic_tiles),
    PhotoEffect(
        "stained-glass", "A church window of vivid glass pieces in black lead", MOSAIC, 1, stained_glass
    ),
    PhotoEffect("hex-tiles", "Bevelled hexagonal tiles with dark blue joints", MOSAIC, 1, hex_tiles),
    PhotoEffect("pixel-art", "Large square pixels in a small set of pure game colours", MOSAIC, 1, pixel_art),
    PhotoEffect(
        "toy-bricks", "A picture built of coloured toy bricks with round studs", MOSAIC, 1, toy_bricks
    ),
    PhotoEffect("led-board", "Round glowing lamps on a black display board", MOSAIC, 1, led_board),
    PhotoEffect("bead-curtain", "A curtain of shiny oval beads on swaying strings", MOSAIC, 1, bead_curtain),
)
