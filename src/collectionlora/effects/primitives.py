"""Building blocks of the photo effects.

Images are float arrays [H, W, 3] and tones are float arrays [H, W], both in [0, 1]. Every length (blur
radius, cell size, line period) is in units of 1/64 of the image's shorter side, so that an effect has the
same look at every resolution and features of a few pixels at 64x64.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.random import Generator, default_rng
from scipy import ndimage
from scipy.spatial import cKDTree

from collectionlora.effects.base import FloatArray

Labels: TypeAlias = npt.NDArray[np.intp]

UNITS = 64
WHITE: FloatArray = np.ones(3, dtype=np.float32)


def unit(image: FloatArray) -> float:
    """Return the number of pixels in one unit of length."""
    return min(image.shape[:2]) / UNITS


def extent(image: FloatArray) -> tuple[float, float]:
    """Return the height and width of the image in units."""
    return image.shape[0] / unit(image), image.shape[1] / unit(image)


def positions(image: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return y and x [H, W] of the pixel centres in units."""
    centres: FloatArray = (np.indices(image.shape[:2], dtype=np.float32) + 0.5) / unit(image)
    return centres[0], centres[1]


def centred(image: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return y and x [H, W] in units, with the origin in the middle of the image."""
    y, x = positions(image)
    height, width = extent(image)
    return y - height / 2, x - width / 2


def relative(image: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return y and x [H, W] as fractions of the height and the width, in (0, 1)."""
    y, x = positions(image)
    height, width = extent(image)
    return y / height, x / width


# Tones and colours


def luminance(image: FloatArray) -> FloatArray:
    """Return the tone [H, W] of an image (Rec. 601 weights)."""
    return image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def palette(hex_colours: str) -> FloatArray:
    """Return the colours [n, 3] of a string such as `"102030 ffffff"`."""
    return np.array([list(bytes.fromhex(colour)) for colour in hex_colours.split()], dtype=np.float32) / 255


def mix(first: FloatArray, second: FloatArray, weight: FloatArray | float) -> FloatArray:
    """Blend two images or colours [..., 3]; the weight of the second is a tone [H, W] or a number."""
    weight = np.asarray(weight, dtype=np.float32)[..., None]
    return first + (second - first) * weight


def screen(first: FloatArray, second: FloatArray) -> FloatArray:
    """Add light without exceeding white."""
    return 1 - (1 - first) * (1 - second)


def gradient_map(tone: FloatArray, colours: FloatArray) -> FloatArray:
    """Colour a tone [H, W] with evenly spaced colours [n, 3], from black to white."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(tone, stops, channel) for channel in colours.T], axis=-1)


def contrast(values: FloatArray, gain: float) -> FloatArray:
    """Stretch around the middle grey and clip to [0, 1]."""
    return np.clip((values - 0.5) * gain + 0.5, 0, 1)


def posterise(values: FloatArray, levels: int) -> FloatArray:
    """Quantise [0, 1] to evenly spaced levels that include 0 and 1."""
    return np.clip(np.floor(values * levels), 0, levels - 1) / (levels - 1)


def saturate(image: FloatArray, factor: float) -> FloatArray:
    """Scale the distance to grey and clip to [0, 1]."""
    grey = luminance(image)[..., None]
    return np.clip(grey + (image - grey) * factor, 0, 1)


def smoothstep(low: FloatArray | float, high: FloatArray | float, values: FloatArray) -> FloatArray:
    """Rise smoothly from 0 at `low` to 1 at `high` (or fall, when low > high)."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# Filters


def blur(image: FloatArray, radius: float) -> FloatArray:
    """Smooth an image or tone with a Gaussian of this standard deviation in units."""
    blurred: FloatArray = ndimage.gaussian_filter(
        image, radius * unit(image), axes=(0, 1), mode="nearest", truncate=3
    )
    return blurred


def slopes(tone: FloatArray, radius: float) -> tuple[FloatArray, FloatArray]:
    """Return the derivatives along y and x, per unit, of a tone blurred by `radius`."""
    smooth = blur(tone, radius)
    per_unit = unit(tone) / 8
    return (
        ndimage.sobel(smooth, axis=0, mode="nearest") * per_unit,
        ndimage.sobel(smooth, axis=1, mode="nearest") * per_unit,
    )


def edges(tone: FloatArray, radius: float) -> FloatArray:
    """Return the length of the gradient per unit; strong edges of a photo reach about 0.2."""
    down, right = slopes(tone, radius)
    return np.hypot(down, right)


def relief(tone: FloatArray, radius: float, depth: float) -> FloatArray:
    """Light a height map from the upper left; flat parts are 0.5, the range is [0, 1]."""
    down, right = slopes(tone, radius)
    return np.clip(0.5 + depth * (down + right), 0, 1)


def ink_lines(tone: FloatArray, radius: float) -> FloatArray:
    """Return lines [H, W] of strength 0 to 1 along the dark side of edges (difference of Gaussians)."""
    return smoothstep(0.008, 0.03, blur(tone, 1.6 * radius) - blur(tone, radius))


def warp(image: FloatArray, y: FloatArray, x: FloatArray) -> FloatArray:
    """Sample the image at positions y, x [H, W] in units, mirrored beyond the border."""
    pixels = [y * unit(image) - 0.5, x * unit(image) - 0.5]
    channels = [
        ndimage.map_coordinates(image[..., channel], pixels, order=1, mode="reflect")
        for channel in range(image.shape[2])
    ]
    return np.stack(channels, axis=-1)


def dominant_colours(image: FloatArray, size: float, levels: int = 8) -> FloatArray:
    """Replace each pixel by the mean colour of the most frequent tone in a square around it."""
    pixels = max(1, round(size * unit(image)))
    bins = np.minimum((luminance(image) * levels).astype(int), levels - 1)
    total = np.zeros_like(image)
    votes = np.full(image.shape[:2], 1e-12, dtype=np.float32)
    for level in range(levels):
        chosen = (bins == level).astype(np.float32)
        share = np.maximum(ndimage.uniform_filter(chosen, pixels, mode="nearest"), 0)
        colour = ndimage.uniform_filter(image * chosen[..., None], pixels, axes=(0, 1), mode="nearest")
        # A high power makes the most frequent tone win without the hard seams of an argmax.
        total += colour * (share**7)[..., None]
        votes += share**8
    return total / votes[..., None]


# Patterns


def texture(image: FloatArray, cell: float, seed: int) -> FloatArray:
    """Return smooth noise [H, W] in [0, 1], the same for every image of this size."""
    return noise_field(image, cell, default_rng(seed))


def noise_field(image: FloatArray, cell: float, rng: Generator) -> FloatArray:
    """Return smooth random noise [H, W] in [0, 1] with features of `cell` units."""
    y, x = positions(image)
    height, width = extent(image)
    lattice = rng.random((int(height / cell) + 2, int(width / cell) + 2), dtype=np.float32)
    noise: FloatArray = ndimage.map_coordinates(lattice, [y / cell, x / cell], order=1)
    return noise


def stripes(image: FloatArray, period: float, degrees: float) -> FloatArray:
    """Return a cosine wave [H, W] in [0, 1]; 0 degrees gives vertical stripes, 90 horizontal ones."""
    y, x = positions(image)
    angle = np.deg2rad(degrees)
    return 0.5 + 0.5 * np.cos(2 * np.pi / period * (x * np.cos(angle) + y * np.sin(angle)))


def dot_screen(image: FloatArray, period: float, degrees: float) -> FloatArray:
    """Return a halftone threshold [H, W] in [0, 1] that peaks at the centres of the dots."""
    return (stripes(image, period, degrees) + stripes(image, period, degrees + 90)) / 2


def halftone(tone: FloatArray, threshold: FloatArray) -> FloatArray:
    """Return the amount of ink [H, W] where the darkness exceeds the screen, with soft borders."""
    return smoothstep(-0.15, 0.15, threshold - tone)


def local(coordinate: FloatArray, cell: float) -> FloatArray:
    """Return the position within cells of this size, from -0.5 to 0.5."""
    return coordinate / cell % 1 - 0.5


def grid_labels(y: FloatArray, x: FloatArray, cell_height: float, cell_width: float) -> Labels:
    """Return the number [H, W] of the rectangular cell at each position (not necessarily consecutive)."""
    rows = np.floor(y / cell_height).astype(int)
    columns = np.floor(x / cell_width).astype(int)
    rows -= rows.min()
    columns -= columns.min()
    return rows * (columns.max() + 1) + columns


def cell_mean(image: FloatArray, labels: Labels) -> FloatArray:
    """Fill every labelled cell with its mean colour."""
    flat = labels.ravel()
    counts = np.maximum(np.bincount(flat), 1)
    sums = [np.bincount(flat, image[..., channel].ravel()) for channel in range(image.shape[2])]
    return (np.stack(sums, axis=-1) / counts[:, None])[labels]


def scattered_points(image: FloatArray, cell: float, jitter: float, rng: Generator) -> FloatArray:
    """Return points [n, 2] (y, x in units), one per cell of a grid that covers the image and its border.

    Each point lies at the centre of its cell, moved by up to `jitter` half cells along each axis.
    """
    height, width = extent(image)
    rows, columns = np.mgrid[-1 : int(height / cell) + 2, -1 : int(width / cell) + 2]
    centres = np.stack([rows.ravel(), columns.ravel()], axis=-1) + 0.5
    return (centres + jitter * rng.uniform(-0.5, 0.5, centres.shape)) * cell


def uniform_points(image: FloatArray, per_square: float, rng: Generator) -> FloatArray:
    """Return random points [n >= 2, 2] (y, x in units), `per_square` of them for each 64x64 units."""
    height, width = extent(image)
    count = max(2, round(per_square * height * width / UNITS**2))
    return rng.random((count, 2)) * [height, width]


def nearest(
    y: FloatArray, x: FloatArray, points: FloatArray, neighbours: int = 1
) -> tuple[FloatArray, Labels]:
    """Return distances and indices [H, W, neighbours] of the points [n, 2] nearest to each position."""
    distances, labels = cKDTree(points).query(np.stack([y, x], axis=-1), k=range(1, neighbours + 1))
    return distances, labels
