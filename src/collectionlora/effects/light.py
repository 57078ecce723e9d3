"""Effects that add light to a photo."""

import numpy as np

from collectionlora.effects.base import FloatArray, PhotoEffect
from collectionlora.effects.primitives import (
    blur,
    centred,
    contrast,
    edges,
    gradient_map,
    luminance,
    palette,
    positions,
    relative,
    saturate,
    screen,
    smoothstep,
    stripes,
    texture,
    warp,
)

GLOW = "make it glow"

NEON_TINTS = palette("ff1f8f 00e5ff 7dff1f ff8a00")
SPOTS = ((0.28, 0.28), (0.28, 0.72), (0.72, 0.28), (0.72, 0.72))


def neon_edges(image: FloatArray) -> FloatArray:
    lines = smoothstep(0.02, 0.14, edges(luminance(image), 0.7))
    y, x = relative(image)
    rainbow = 0.5 + 0.5 * np.cos(2 * np.pi * ((y + x) / 1.4)[..., None] + np.array([0.0, 2.1, 4.2]))
    tubes = lines[..., None] * (0.25 + rainbow)
    return 0.02 + tubes + 0.8 * blur(tubes, 2)


def neon_sign(image: FloatArray, mode: int) -> FloatArray:
    tone = luminance(image)
    lines = smoothstep(0.03, 0.12, edges(tone, 0.9))
    wall = 0.1 + 0.45 * contrast(tone, 1.3) + 0.7 * blur(lines, 3)
    return wall[..., None] * NEON_TINTS[mode] + 0.9 * lines[..., None]


def bloom(image: FloatArray) -> FloatArray:
    bright = smoothstep(0.25, 0.95, luminance(image))[..., None] * image
    halo = 0.9 * blur(bright, 4) + 0.5 * blur(bright, 1.5)
    return screen(0.12 + 0.88 * saturate(image, 1.5), np.clip(halo, 0, 1) * palette("ffc4dc")[0])


def sunbeams(image: FloatArray, mode: int) -> FloatArray:
    y, x = relative(image)
    side = np.abs(x - mode)
    angle = np.arctan2(y + 0.15, side + 0.1)
    rays = 0.6 + 0.4 * np.cos(16 * angle) * np.cos(5 * angle + 1)
    strength = rays * smoothstep(1.25, 0.05, np.hypot(y, side))
    dusk = 0.55 * image * palette("b8a8d8")[0]
    return screen(dusk, 1.15 * strength[..., None] * palette("ffd27a")[0])


def spotlight(image: FloatArray, mode: int) -> FloatArray:
    middle_y, middle_x = SPOTS[mode]
    y, x = relative(image)
    lit = smoothstep(0.36, 0.26, np.hypot(y - middle_y, x - middle_x))
    return image * 0.12 + (0.25 + 0.95 * image) * palette("fff1c4")[0] * lit[..., None]


def hologram(image: FloatArray) -> FloatArray:
    y, x = positions(image)
    offset = 2.5 * np.sin(y / 5)
    tone = luminance(0.6 * warp(image, y, x + offset) + 0.4 * warp(image, y, x - 5))
    body = 0.75 * contrast(tone, 1.3) + 2.5 * edges(tone, 0.6)
    scan = 0.55 + 0.45 * stripes(image, 4, 90)
    colours = gradient_map(np.clip(body * scan, 0, 1), palette("000c1c 0052a8 18d8f0 e8ffff"))
    return colours + 0.18 * (texture(image, 9, 70) * scan)[..., None] * palette("b040ff")[0]


def night_vision(image: FloatArray) -> FloatArray:
    y, x = centred(image)
    goggles = smoothstep(38, 24, np.hypot(y, x))
    noise = 0.25 * (texture(image, 1, 71) - 0.5)
    amplified = np.clip(luminance(image), 0, 1) ** 0.7 + noise
    scan = 0.75 + 0.25 * stripes(image, 3, 90)
    green = gradient_map(np.clip(amplified * scan, 0, 1), palette("001a05 0c7a1e 55e04a e6ffd8"))
    return green * (0.08 + 0.92 * goggles)[..., None]


LIGHT = (
    PhotoEffect("neon-edges", "Outlines as rainbow neon tubes on black", GLOW, 1, neon_edges),
    PhotoEffect(
        "neon-sign",
        "White-hot outlines in the glow of one of four neon colours",
        GLOW,
        len(NEON_TINTS),
        neon_sign,
    ),
    PhotoEffect("bloom", "A dreamy, overexposed picture with soft pink halos", GLOW, 1, bloom),
    PhotoEffect("sunbeams", "Golden evening sunbeams from the upper left or upper right", GLOW, 2, sunbeams),
    PhotoEffect(
        "spotlight",
        "A dark scene with a warm spotlight on one of its four quarters",
        GLOW,
        len(SPOTS),
        spotlight,
    ),
    PhotoEffect(
        "hologram", "A flickering blue hologram with scan lines and a ghost image", GLOW, 1, hologram
    ),
    PhotoEffect("night-vision", "A noisy green view through night vision goggles", GLOW, 1, night_vision),
)
