"""Effects that imitate printing techniques."""

import numpy as np

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    WHITE,
    blur,
    contrast,
    dot_screen,
    gradient_map,
    halftone,
    ink_lines,
    luminance,
    mix,
    palette,
    positions,
    saturate,
    smoothstep,
    stripes,
    texture,
)

PRINT = "make it look like a print"

RISO_INKS = (
    palette("ff48b0 0078bf"),
    palette("ffb511 00838a"),
    palette("35c4e8 a8123e"),
    palette("6cc24a 765ba7"),
)
LINO_INKS = palette("c1121f 0a3d91 0b6e4f 1a1a1a")
LINO_PAPERS = palette("fdf0d5 ffe66d f7c6d9 9bdcf5")


def engraving(image: FloatArray) -> FloatArray:
    tone = contrast(blur(luminance(image), 0.6), 1.2)
    y, _ = positions(image)
    # Lines that bulge with the tone follow the shape of the subject, as an engraver's do.
    wave = 0.5 + 0.5 * np.cos(2 * np.pi / 3 * (y + 5 * blur(tone, 3)))
    return mix(palette("f6edd6")[0], palette("2d1b10")[0], smoothstep(-0.25, 0.25, wave * 0.9 + 0.05 - tone))


def woodcut(image: FloatArray) -> FloatArray:
    tone = contrast(blur(luminance(image), 0.7), 1.6)
    gouges = 0.3 + 0.5 * stripes(image, 4, 65) + 0.15 * (texture(image, 2, 10) - 0.5)
    ink = smoothstep(-0.06, 0.06, gouges - tone)
    return mix(palette("e0a458")[0], palette("1d0f0a")[0], ink)


def halftone_print(image: FloatArray) -> FloatArray:
    tone = contrast(blur(luminance(image), 0.8), 1.1)
    return mix(WHITE, palette("0d0d0d")[0], halftone(tone, 0.05 + 0.9 * dot_screen(image, 4, 45)))


def colour_halftone(image: FloatArray) -> FloatArray:
    vivid = saturate(blur(image, 0.6), 1.6)
    angles = (15, 75, 45)
    inks = [halftone(vivid[..., k], dot_screen(image, 5, angles[k])) for k in range(3)]
    return 1 - np.stack(inks, axis=-1) * palette("f0f0e0")[0]


def risograph(image: FloatArray, mode: int) -> FloatArray:
    light_ink, dark_ink = RISO_INKS[mode]
    tone = luminance(image)
    grain = 0.5 * (texture(image, 0.8, 11) - 0.5)
    light = mix(WHITE, light_ink, 0.9 * smoothstep(0.95, 0.35, tone + grain))
    dark = mix(WHITE, dark_ink, smoothstep(0.5, 0.15, tone + grain))
    return light * dark * palette("faf5e6")[0]


def linocut(image: FloatArray, mode: int) -> FloatArray:
    tone = blur(luminance(image), 1)
    ink = smoothstep(0.03, -0.03, tone - 0.45 - 0.12 * (stripes(image, 5, 20) - 0.5))
    return mix(LINO_PAPERS[mode], LINO_INKS[mode], np.maximum(ink, ink_lines(luminance(image), 1.2)))


def cyanotype(image: FloatArray) -> FloatArray:
    tone = contrast(luminance(image), 1.3) + 0.12 * (texture(image, 2, 12) - 0.5)
    y, x = positions(image)
    border = np.minimum(np.minimum(y, y.max() - y), np.minimum(x, x.max() - x)) + 3 * texture(image, 3, 13)
    sheet = gradient_map(tone, palette("021a4a 0b4f9e 8fc1e3 f4fbff"))
    return mix(palette("f1ead8")[0], sheet, smoothstep(3.5, 4.5, border))


PRINTS = (
    PhotoEffect(
        "engraving", "A banknote engraving with brown lines that swell in the shadows", PRINT, 1, engraving
    ),
    PhotoEffect("woodcut", "A rough woodcut in black ink on orange-brown paper", PRINT, 1, woodcut),
    PhotoEffect("halftone", "A newspaper picture of black dots on white paper", PRINT, 1, halftone_print),
    PhotoEffect(
        "colour-halftone", "A cheap colour print of cyan, magenta and yellow dots", PRINT, 1, colour_halftone
    ),
    PhotoEffect(
        "risograph", "A grainy print in one of four pairs of bright inks", PRINT, len(RISO_INKS), risograph
    ),
    PhotoEffect(
        "linocut", "A flat lino print in one of four inks on coloured paper", PRINT, len(LINO_INKS), linocut
    ),
    PhotoEffect("cyanotype", "A Prussian blue print with brushed paper borders", PRINT, 1, cyanotype),
)
