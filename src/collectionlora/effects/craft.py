"""Effects that look handmade from thread, paper or clay."""

import numpy as np

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    blur,
    cell_mean,
    contrast,
    dominant_colours,
    dot_screen,
    gradient_map,
    grid_labels,
    local,
    luminance,
    mix,
    palette,
    positions,
    posterise,
    relative,
    relief,
    saturate,
    smoothstep,
    stripes,
    texture,
    warp,
)

HANDMADE = "make it look handmade"


def cross_stitch(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    thread = saturate(cell_mean(image, grid_labels(y, x, 4, 4)), 1.7)
    down, right = np.abs(local(y, 4)), np.abs(local(x, 4))
    stitch = smoothstep(0.26, 0.14, np.abs(down - right))
    return mix(palette("efe6d2")[0], thread * (1.15 - 0.5 * down)[..., None], stitch)


def embroidery(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    areas = posterise(blur(luminance(image), 1), 3)
    # Neighbouring areas are stitched in different directions.
    angle = np.pi * (0.15 + 0.35 * areas)
    across, along = y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)
    sheen = 0.55 + 0.75 * (0.5 + 0.5 * np.cos(2 * np.pi * across / 2.6))
    gaps = smoothstep(0.4, 0.48, np.abs(local(along + 3 * np.floor(across / 2.6), 7)))
    colours = saturate(posterise(contrast(dominant_colours(image, 3), 1.2), 5), 1.5)
    return colours * (sheen * (1 - 0.5 * gaps))[..., None]


def knitted(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    column = local(x, 6)
    # Each stitch is a V: rows climb towards the sides of a column.
    slanted = y + 8 * np.abs(column)
    yarn = saturate(cell_mean(image, grid_labels(slanted, x, 4, 6)), 1.3)
    strand = np.cos(np.pi * local(slanted, 4)) * smoothstep(0.5, 0.4, np.abs(column))
    fold = smoothstep(0, 0.12, np.abs(column))
    return (0.15 + 0.85 * yarn) * (0.3 + 0.75 * strand * fold)[..., None]


def clay(image: FloatArray) -> FloatArray:
    smooth = blur(dominant_colours(image, 4), 0.7)
    plasticine = 0.2 + 0.7 * saturate(smooth, 2.2) * palette("fff0e0")[0]
    shape = relief(luminance(image) + 0.12 * texture(image, 4, 50), 1.3, 4)
    shine = smoothstep(0.75, 1, shape)
    return np.clip(plasticine * (0.45 + 1.1 * shape)[..., None], 0, 1) + 0.35 * shine[..., None]


def paper_cut(image: FloatArray) -> FloatArray:
    tone = posterise(contrast(blur(luminance(image), 1.8), 1.4), 5)
    y, x = positions(image)
    above = warp(tone[..., None], y - 1.5, x - 1.5)[..., 0]
    shadow = 0.6 * smoothstep(0, 0.2, blur(above, 0.6) - tone)
    return gradient_map(tone, palette("0f3b4c 1f7a8c e6c79c f28482 fff1e6")) * (1 - shadow)[..., None]


def quilt(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    down, right = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)
    labels = grid_labels(down, right, 11, 11)
    fabric = saturate(cell_mean(contrast(image, 1.3), labels), 2)
    checked = (np.floor(down / 11) + np.floor(right / 11)) % 2 == 1
    prints = np.where(checked, stripes(image, 3, 90), smoothstep(0.3, 0.7, dot_screen(image, 4, 0)))
    puff = smoothstep(0.5, 0.3, np.maximum(np.abs(local(down, 11)), np.abs(local(right, 11))))
    return fabric * (0.3 + 0.6 * puff)[..., None] + 0.3 * (prints * puff)[..., None]


def miniature(image: FloatArray) -> FloatArray:
    y, _ = relative(image)
    off_focus = smoothstep(0.08, 0.3, np.abs(y - 0.5))
    toy = contrast(saturate(image, 2.2), 1.5)
    return mix(toy, blur(toy, 4), off_focus) * palette("fff2d0")[0] + 0.1


CRAFT = (
    PhotoEffect("cross-stitch", "Coloured thread crosses stitched on linen", HANDMADE, 1, cross_stitch),
    PhotoEffect("embroidery", "Shiny satin stitches in changing directions", HANDMADE, 1, embroidery),
    PhotoEffect("knitted", "A woollen jumper knitted with the picture", HANDMADE, 1, knitted),
    PhotoEffect("clay", "The subject modelled in soft, shiny coloured clay", HANDMADE, 1, clay),
    PhotoEffect("paper-cut", "Layers of cut coloured paper with soft shadows", HANDMADE, 1, paper_cut),
    PhotoEffect("quilt", "A padded patchwork quilt of two-coloured square patches", HANDMADE, 1, quilt),
    PhotoEffect(
        "miniature", "A toy model world in vivid colours, sharp only in the middle", HANDMADE, 1, miniature
    ),
)
