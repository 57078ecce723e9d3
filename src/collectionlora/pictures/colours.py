"""Colour profiles: numbers of Display P3, Adobe RGB, a press or a scanner become those of sRGB.

The base was trained on sRGB, and results are written as sRGB, without a profile.
"""

import io
import logging
from pathlib import Path

from PIL import Image, ImageCms

log = logging.getLogger(__name__)
INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of Pillow, by the name of a profile's colour space
GAMMA = 1 / 2.2  # of sRGB, about, as a PNG names it
STORED = {"1": "L", "L": "L", "CMYK": "CMYK"}  # all others are RGB, or become it


def convert_to_srgb(image: Image.Image, path: Path) -> Image.Image:
    """An image of 8 bits as RGB in sRGB; unchanged, with a warning, if its profile cannot be used.

    Args:
        image: RGB, L or CMYK, or a mode that Pillow turns into RGB; its transparency is lost.
        path: where it comes from, for the warning.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return apply_gamma(image.convert("RGB"))
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode, stored = MODES[source.profile.xcolor_space], STORED.get(image.mode, "RGB")
        # A grey photo often carries the profile of a colour space, which tells its greys as well.
        if mode != stored and (mode, stored) != ("RGB", "L"):
            raise ValueError(f"it is of {mode}, the picture is {image.mode}")
        converted = ImageCms.profileToProfile(
            image.convert(mode), source, ImageCms.createProfile("sRGB"), INTENT, "RGB", flags=FLAGS
        )
    except (ImageCms.PyCMSError, KeyError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        log.warning("%s: its colour profile cannot be used (%s); it is read as sRGB", path, reason)
        return image.convert("RGB")
    assert converted is not None  # it is only where the image itself is changed
    return converted


def apply_gamma(image: Image.Image) -> Image.Image:
    """An RGB image whose PNG says that its numbers are light to another power than sRGB's, as sRGB.

    PNG specification, third edition, gAMA: a chunk sRGB stands above it. A gamma within 5 % of sRGB's is that
    of sRGB, as libpng takes it.
    """
    gamma = image.info.get("gamma", 0)
    if "srgb" in image.info or gamma <= 0 or abs(gamma / GAMMA - 1) < 0.05:
        return image
    return image.point([round(255 * (level / 255) ** (GAMMA / gamma)) for level in range(256)] * 3)
