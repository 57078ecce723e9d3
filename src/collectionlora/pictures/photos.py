"""Photos in and out: any mode, size and orientation becomes RGB."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from collectionlora.pictures.colours import convert_to_srgb
from collectionlora.pictures.folders import reads_heic
from collectionlora.system.errors import HINTS, UserError
from collectionlora.system.files import write_whole

MAX_PIXELS = 200_000_000
# Whatever the name of a file says. Pillow reads more, some by programs that it starts (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
# Others hold fewer pixels (ICO), are no pictures (PDF), or Pillow only writes other modes than RGB.
WRITTEN = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000")
Photo = NDArray[np.uint8]  # [H, W, 3]
Picture = Path | str | Image.Image | NDArray[np.uint8]  # what `to_photo` takes


def read_photo(path: Path, max_pixels: int = MAX_PIXELS, reduced: bool = False) -> Photo:
    """A photo as uint8 RGB `[H, W, 3]` in sRGB, upright; transparency over white, 16 bits scaled to 8.

    Args:
        reduced: a JPEG of more than `max_pixels` is decoded at a half, a quarter or an eighth of its sides.

    Raises:
        UserError: missing, not an image, damaged, or too large.
    """
    with _opened(path, max_pixels, reduced) as image:
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image), path))


@contextmanager
def _opened(path: Path, max_pixels: int, reduced: bool = False) -> Iterator[Image.Image]:
    """A photo's file; what goes wrong inside the block is told as its fault."""
    formats: tuple[str, ...] = FORMATS
    if reads_heic():
        import pillow_heif

        pillow_heif.register_heif_opener()
        formats = (*FORMATS, "HEIF")
    if path.is_fifo():  # which would be waited for
        raise UserError(path, "", "is a pipe", "write it to a file first")
    try:
        with Image.open(path, formats=formats) as image:
            if reduced:
                _reduce_jpeg(image, max_pixels)
            if not 0 < image.width * image.height <= max_pixels:
                size = f"{image.width} x {image.height}"
                raise UserError(path, "", f"has {size} pixels", f"keep it under {max_pixels:,} pixels")
            yield image
    except FileNotFoundError:
        raise UserError(path, "", "there is no such file", "check the path") from None
    except UnidentifiedImageError:
        # Pillow's own words repeat the whole path, which a server must not show.
        raise UserError(
            path, "", "cannot be read as an image (unknown format)", "replace or remove it"
        ) from None
    except UserError:
        raise
    # Pillow's decoders let out whatever damaged bytes make them do: struct.error, IndexError, EOFError, ...
    except Exception as error:
        reason = f"cannot be read as an image ({error or type(error).__name__})"
        number = error.errno if isinstance(error, OSError) else None
        raise UserError(path, "", reason, HINTS.get(number or 0, "replace or remove it")) from None


def _reduce_jpeg(image: Image.Image, max_pixels: int) -> None:
    """Let a JPEG be decoded at the largest size that fits; other formats have no smaller one inside."""
    width, height = image.size
    for divisor in (1, 2, 4, 8):
        if width * height <= max_pixels * divisor**2:
            image.draft(None, (width // divisor, height // divisor))
            return


def to_photo(picture: Picture) -> Photo:
    """A photo from a path, a PIL image of any mode, or a uint8 array `[H, W]`, `[H, W, 3]` or `[H, W, 4]`.

    Raises:
        UserError: anything else, or a file that cannot be read.
    """
    if isinstance(picture, str | Path):
        return read_photo(Path(picture))
    if isinstance(picture, Image.Image):
        return np.asarray(_to_rgb(ImageOps.exif_transpose(picture), Path("photo")))
    hint = "give a path, a PIL image, or a uint8 array [height, width, 3]"
    if not isinstance(picture, np.ndarray):
        raise UserError("", "photo", f"is a {type(picture).__name__}", hint)
    channels = picture.shape[2:] or (1,)
    if picture.dtype != np.uint8 or picture.size == 0 or channels not in ((1,), (3,), (4,)):
        raise UserError("", "photo", f"is an array of {picture.dtype} {list(picture.shape)}", hint)
    flat = picture if channels != (1,) else picture.reshape(picture.shape[:2])
    return np.asarray(_to_rgb(Image.fromarray(flat), Path("photo")))


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        eight = Image.fromarray((values * _scale_of(image.mode, values)).clip(0, 255).astype(np.uint8))
        eight.info = image.info
        grey = convert_to_srgb(eight, path)
        if "transparency" in image.info:  # one grey of a PNG, in the numbers of the file
            grey.paste("white", mask=Image.fromarray(values == image.info["transparency"]))
        return grey
    if image.mode != "CMYK" and ("A" in image.getbands() or "transparency" in image.info):
        layered = image.convert("RGBA")
        colours = convert_to_srgb(image.convert("L") if image.mode == "LA" else layered.convert("RGB"), path)
        white = Image.new("RGB", layered.size, "white")
        white.paste(colours, mask=layered.getchannel("A"))
        return white
    return convert_to_srgb(image, path)


def _scale_of(mode: str, values: NDArray[np.float32]) -> float:
    """What brings grey numbers to 255: "I;16" is 16 bits however dark; "I" and "F" do not say their white."""
    if mode == "F" and values.max() <= 1:
        return 255
    return 255 / 65535 if mode.startswith("I;16") or values.max() > 255 else 1


def crop_square(photo: Photo, side: int) -> Photo:
    """The middle square of a photo, resized by area to `[side, side, 3]`."""
    return np.asarray(ImageOps.fit(Image.fromarray(photo), (side, side), Image.Resampling.BOX))


def resize(photo: Photo, size: tuple[int, int]) -> Photo:
    """A photo at `size` (height, width)."""
    return np.asarray(Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def to_images(photos: Sequence[Photo]) -> Tensor:
    """Photos of one size to images in [0, 1], `[B, 3, H, W]`."""
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 255


def to_photos(images: Tensor) -> list[Photo]:
    """Images in [0, 1], `[B, 3, H, W]`, to uint8 photos."""
    levels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return list(levels)


def is_picture_name(path: Path) -> bool:
    """Whether a path has the suffix of a picture that can be written."""
    return Image.registered_extensions().get(path.suffix.lower()) in WRITTEN


def photo_format(path: Path) -> str:
    """The format that a path's suffix stands for, in Pillow's words.

    Raises:
        UserError: a suffix that is not one of `WRITTEN`.
    """
    if not is_picture_name(path):
        raise UserError(path, "", f"{path.suffix!r} is not an image format", "end the name in .png or .jpg")
    return Image.registered_extensions()[path.suffix.lower()]


def write_photo(path: Path, photo: Photo) -> None:
    """Write a photo in the format of the path's suffix, whole or not at all.

    Raises:
        UserError: a suffix that is not an image format, a photo too large for it, or it cannot be written.
    """
    kind, (height, width) = photo_format(path), photo.shape[:2]
    with write_whole(path) as partial:
        try:
            Image.fromarray(photo).save(partial, format=kind)
        except (ValueError, RuntimeError, struct.error) as error:  # of the format's own library
            message = f"{kind} cannot hold {width} x {height} pixels ({error})"
            raise UserError(path, "", message, "end the name in .png") from None


def chunks(total: int, size: int) -> Iterator[slice]:
    """The numbers from 0 to `total`, in parts of `size`."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
