"""Image pairs: both sides must show the same place, or an effect LoRA learns to crop and to turn."""

from collections.abc import Iterable
from pathlib import Path

from collectionlora.pictures.photos import Photo, read_photo
from collectionlora.system.errors import UserError

# Models of editing round sides to multiples of 16 or 32, which changes the aspect by some percents.
MAX_ASPECT_CHANGE = 0.05


def read_pair(source: Path, target: Path) -> tuple[Photo, Photo]:
    """Both photos of a pair, upright, each `[H, W, 3]`; their sizes may differ, their shapes may not.

    Raises:
        UserError: one cannot be read, or their aspects differ by more than `MAX_ASPECT_CHANGE`.
    """
    photos = read_photo(source), read_photo(target)
    refuse_other_shape(target, photos[1], source, photos[0])
    return photos


def check_pairs(pairs: Iterable[tuple[Path, Path]]) -> None:
    """Read every pair, and keep none.

    Raises:
        UserError: a pair that `read_pair` refuses.
    """
    for source, target in pairs:
        read_pair(source, target)


def refuse_other_shape(path: Path, photo: Photo, other_path: Path, other: Photo) -> None:
    """Refuse a photo that, brought to the size of another one, would show another place or be stretched.

    Raises:
        UserError: their aspects differ by more than `MAX_ASPECT_CHANGE`.
    """
    (height, width), (other_height, other_width) = photo.shape[:2], other.shape[:2]
    change = width * other_height / (height * other_width)
    if max(change, 1 / change) > 1 + MAX_ASPECT_CHANGE:
        message = (
            f"has another shape than {other_path}: {width} x {height}, not {other_width} x {other_height}"
        )
        hint = "crop both to the same part of the picture, or remove the pair"
        raise UserError(path, "", f"{message} (upright)", hint)
