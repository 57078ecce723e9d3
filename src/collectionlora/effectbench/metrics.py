"""How near an image is to the truth, where the truth is one image, a list of them, or a random family."""

from collections.abc import Sequence

import numpy as np
from skimage.metrics import structural_similarity

from collectionlora.effects import PhotoEffect
from collectionlora.pictures.photos import Photo, to_images

FAMILY_DRAWS = 32  # outcomes drawn to stand for a continuous random family


def psnr(a: Photo, b: Photo) -> float:
    """Peak signal-to-noise ratio of two uint8 photos in dB, at most 60 (for equal photos)."""
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean()
    return float(min(60.0, 10 * np.log10(255**2 / max(error, 1e-9))))


def ssim(a: Photo, b: Photo) -> float:
    """Structural similarity of two photos, at most 1; over 7 x 7 windows."""
    return float(structural_similarity(a, b, channel_axis=2))


def perceptual_distance(a: Photo, b: Photo) -> float:
    """Mean deviation similarity index of two photos; 0 for equal ones, larger is worse, about 0.5 is far.

    Compares gradients and chromaticity and needs no weights (Nafchi et al. 2016, arXiv 1608.07433).
    """
    from piq import mdsi  # which brings torchvision: only where something is judged

    return float(mdsi(to_images([a]), to_images([b]), data_range=1.0))


def valid_outcomes(effect: PhotoEffect, photo: Photo, seed: int = 0) -> list[Photo]:
    """All right answers of a finite effect; `FAMILY_DRAWS` of a continuous one."""
    if effect.num_outcomes is not None:
        return effect.outcomes(photo)
    return [effect(photo, np.random.default_rng([seed, i])) for i in range(FAMILY_DRAWS)]


def nearest_outcome(made: Photo, outcomes: Sequence[Photo]) -> tuple[int, float]:
    """The valid outcome that an image is nearest to, and the PSNR to it in dB."""
    distances = [psnr(made, outcome) for outcome in outcomes]
    best = int(np.argmax(distances))
    return best, distances[best]


def coverage(hits: Sequence[int], num_outcomes: int) -> float:
    """How evenly images fall on the outcomes of a finite effect, in [0, 1].

    1 minus the total variation distance to equal shares, rescaled so that a single outcome gives 0.
    """
    if num_outcomes == 1:
        return 1.0
    shares = np.bincount(hits, minlength=num_outcomes) / len(hits)
    distance = 0.5 * np.abs(shares - 1 / num_outcomes).sum()
    return float(1 - distance / (1 - 1 / num_outcomes))
