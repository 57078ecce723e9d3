"""Effects that turn a photo into a line or tone drawing."""

import numpy as np

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    WHITE,
    blur,
    edges,
    halftone,
    ink_lines,
    local,
    luminance,
    mix,
    palette,
    positions,
    smoothstep,
    stripes,
    texture,
)

DRAW = "turn the photo into a drawing"

TINTED_PAPERS = palette("d9542b 2f8f5b 3a5fc4 e3b62f")


def pencil_sketch(image: FloatArray) -> FloatArray:
    tone = luminance(image)
    lines = np.clip(tone / (blur(tone, 2) + 0.02), 0, 1) ** 2
    hatching = stripes(image, 3, 40) * smoothstep(0.6, 0.1, blur(tone, 1))
    grain = 0.12 * texture(image, 1, 1)
    return mix(palette("2b2b30")[0], palette("f7f6f2")[0], np.clip(lines - 0.55 * hatching - grain, 0, 1))


def ink_line(image: FloatArray) -> FloatArray:
    tone = luminance(image)
    ink = np.maximum(ink_lines(tone, 0.8), smoothstep(0.2, 0.12, blur(tone, 0.8)))
    return mix(WHITE, palette("101018")[0], ink)


def charcoal(image: FloatArray) -> FloatArray:
    tone = luminance(image)
    smear = 0.5 * texture(image, 1, 2) + 0.5 * texture(image, 3, 3)
    coal = 0.85 * smoothstep(0.75, 0.05, blur(tone, 0.8) + 0.5 * (smear - 0.5)) + 0.9 * ink_lines(tone, 1)
    return mix(palette("cfc7b8")[0], palette("1c1a19")[0], np.clip(coal, 0, 1))


def chalkboard(image: FloatArray) -> FloatArray:
    tone = luminance(image)
    chalk = 6 * edges(tone, 0.8) + 0.45 * smoothstep(0.55, 0.95, tone)
    dusty = np.clip(chalk, 0, 1) * (0.35 + 0.65 * texture(image, 1, 4))
    board = mix(palette("1f3d33")[0], palette("34574b")[0], texture(image, 16, 5))
    return mix(board, palette("f4f1e4")[0], dusty)


def blueprint(image: FloatArray) -> FloatArray:
    tone = luminance(image)
    y, x = positions(image)
    grid = np.maximum(np.abs(local(y, 8)), np.abs(local(x, 8))) > 0.43
    paper = mix(palette("123f8c")[0], palette("2a62b8")[0], 0.5 * tone + 0.35 * grid)
    return mix(paper, WHITE, smoothstep(0.03, 0.12, edges(tone, 0.8)))


def crosshatch(image: FloatArray) -> FloatArray:
    tone = luminance(image)
    ink = ink_lines(tone, 0.6)
    for degrees, darkest in ((45, 0.75), (135, 0.5), (0, 0.3), (90, 0.18)):
        lines = smoothstep(0.6, 0.9, stripes(image, 3, degrees))
        ink = np.maximum(ink, lines * smoothstep(darkest, darkest - 0.15, blur(tone, 0.6)))
    return mix(palette("fbf7ea")[0], palette("14213d")[0], ink)


def tinted_sketch(image: FloatArray, mode: int) -> FloatArray:
    tone = luminance(image)
    paper = mix(TINTED_PAPERS[mode], WHITE, 0.9 * smoothstep(0.6, 0.9, blur(tone, 0.6)))
    shade = halftone(tone + 0.25, stripes(image, 3, 60)) * 0.45
    return paper * (1 - np.clip(np.maximum(ink_lines(tone, 0.8), shade), 0, 0.85))[..., None]


DRAWING = (
    PhotoEffect(
        "pencil-sketch", "A graphite pencil sketch of the subject on white paper", DRAW, 1, pencil_sketch
    ),
    PhotoEffect("ink-line", "A clean black ink line drawing of the subject on white", DRAW, 1, ink_line),
    PhotoEffect(
        "charcoal", "A dark, smudged charcoal drawing of the subject on grey paper", DRAW, 1, charcoal
    ),
    PhotoEffect("chalkboard", "The subject drawn in dusty white chalk on a green board", DRAW, 1, chalkboard),
    PhotoEffect(
        "blueprint", "White construction lines of the subject on blue paper with a grid", DRAW, 1, blueprint
    ),
    PhotoEffect(
        "crosshatch", "The subject shaded with layers of crossed dark blue pen lines", DRAW, 1, crosshatch
    ),
    PhotoEffect(
        "tinted-sketch",
        "Black lines and white chalk on paper in one of four strong colours",
        DRAW,
        len(TINTED_PAPERS),
        tinted_sketch,
    ),
)
