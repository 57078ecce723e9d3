"""Photographs that ship inside scikit-image and scikit-learn: some to work with, whole others to judge on."""

from collections.abc import Sequence

import numpy as np
from skimage import data

from collectionlora.effects.crops import PhotoPool
from collectionlora.pictures.photos import Photo

TRAIN = ("astronaut", "coffee", "motorcycle", "flower")
HELDOUT = ("chelsea", "rocket", "china")


def load_photograph(name: str) -> Photo:
    """One of `TRAIN` or `HELDOUT`, uint8 `[H, W, 3]`; read from the installed packages, never downloaded."""
    if name in ("china", "flower"):
        # A second of every command that shows no such photograph.
        from sklearn.datasets import load_sample_image

        return np.asarray(load_sample_image(f"{name}.jpg"))
    if name == "motorcycle":
        return np.asarray(data.stereo_motorcycle()[0])
    return np.asarray(getattr(data, name)())


def pool(names: Sequence[str]) -> PhotoPool:
    """Random crops of the named photographs."""
    return PhotoPool([load_photograph(name) for name in names])
