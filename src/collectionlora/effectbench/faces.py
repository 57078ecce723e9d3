"""Photos that show a face: a viewer notices a damaged face before anything else."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image
from skimage import data
from skimage.feature import Cascade

from collectionlora.pictures.photos import Photo

SEARCH_SIDE = 128  # pixels of the longest side of what is searched
MIN_FACE = 24  # pixels, the window that the cascade was trained on
MAX_SEARCHED = 64


@cache
def load_cascade() -> Cascade:
    """The frontal face cascade of local binary patterns that ships with scikit-image."""
    return Cascade(data.lbp_frontal_face_cascade_filename())


def has_face(photo: Photo) -> bool:
    """Whether a frontal face takes at least about a fifth of the photo's longest side."""
    scale = SEARCH_SIDE / max(photo.shape[:2])
    height, width = (max(1, round(side * scale)) for side in photo.shape[:2])
    small = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))
    if min(height, width) < MIN_FACE:
        return False
    found = load_cascade().detect_multi_scale(
        small, scale_factor=1.2, step_ratio=1, min_size=(MIN_FACE, MIN_FACE), max_size=(height, width)
    )
    return len(found) > 0


def faces_first(photos: Sequence[Photo], num_photos: int) -> list[int]:
    """The indices of `num_photos` photos to show: those with a face (all but one), then others in order."""
    order = range(len(photos))
    faces = [i for i in order[:MAX_SEARCHED] if has_face(photos[i])][: max(1, num_photos - 1)]
    return [*faces, *(i for i in order if i not in faces)][:num_photos]
