"""Where a visitor drops a photo: what comes is checked at once, and kept as it came."""

import tempfile
from abc import ABCMeta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from collectionlora.pictures.folders import HEIC, HEIC_SUFFIXES, reads_heic
from collectionlora.pictures.photographs import load_photograph
from collectionlora.pictures.photos import Photo, read_photo
from collectionlora.system.errors import UserError

BROWSER_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp")
COPY_QUALITY = 95  # of JPEG, for a format that browsers do not show
EXAMPLES = {"Cat": "chelsea", "Astronaut": "astronaut", "Coffee": "coffee", "Rocket": "rocket"}


class Upload:
    """A file that a visitor sent.

    Attributes:
        name: without its ending, for the names of what is made from it.
        address: where the page finds it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.name, self.address = path.stem, f"gradio_api/file={quote(str(path))}"

    def read(self, max_pixels: int) -> Photo:
        """The photo, by the same rules as everywhere; a JPEG with too many pixels is read smaller.

        Raises:
            UserError: it is not an image, or too large.
        """
        if self.path.suffix.lower() in HEIC_SUFFIXES and not reads_heic():
            why, _, hint = HEIC.partition(": ")
            raise UserError(self.path, "", f"cannot be read ({why})", hint)
        return read_photo(self.path, max_pixels, reduced=True)

    def make_visible(self, photo: Photo) -> Path:
        """The file itself if browsers show it, else a copy that they do show."""
        if self.path.suffix.lower() in BROWSER_SUFFIXES:
            return self.path
        return keep_file(f"{self.name}.jpg", Image.fromarray(photo), quality=COPY_QUALITY)


def keep_file(name: str, image: Image.Image, **options: Any) -> Path:
    """Write an image among the uploads: there it can be fetched, and it is removed as they are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        image.save(path, **options)
        return Path(save_file_to_cache(path, get_upload_folder()))


def write_examples() -> dict[str, Path]:
    """Photographs to start with, by what they show."""
    return {
        label: keep_file(f"{label.lower()}.jpg", Image.fromarray(load_photograph(name)), quality=COPY_QUALITY)
        for label, name in EXAMPLES.items()
    }


class Receiver:
    """The part of a `gr.Image` that takes what a visitor sends; its value is an `Upload`.

    Gradio's own reader knows no limit of pixels, answers a bad file at length, and would fetch an address
    that a visitor sends in place of a file.
    """

    def get_block_name(self) -> str:
        return "image"  # what the browser draws

    def preprocess(self, payload: Any) -> Upload | None:
        return None if payload is None else Upload(Path(payload.path))

    async def async_move_resource_to_block_cache(self, place: str | None) -> str | None:
        """Where an uploaded file lies.

        Raises:
            gr.Error: it is an address.
        """
        if place is not None and "://" in str(place):
            text = "Send a file: addresses are not fetched."
            raise gr.Error(text, title="Photo not read", print_exception=False)
        return await gr.Image.async_move_resource_to_block_cache(self, place)


# A class and not methods of an instance, for Gradio makes new instances of it. There is no class statement,
# for that would make Gradio write a .pyi file into the installed package.
PhotoInput = ABCMeta.__new__(type(gr.Image), "PhotoInput", (Receiver, gr.Image), {})


def photo_input(label: str, height: int) -> gr.Image:
    """A place to drop an image, or to paste one."""
    return PhotoInput(
        label=label,
        sources=["upload", "clipboard"],
        height=height,
        min_width=120,
        buttons=[],
        placeholder="Drop a photo\nor click here",
        elem_classes="photo",
    )
