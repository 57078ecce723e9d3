"""What the endpoints of the API do, and what the page's buttons share with them."""

from collections.abc import Iterator, Sequence
from random import randrange
from typing import Any

import gradio as gr
from PIL import Image
from pydantic import ValidationError

from collectionlora.pictures.photos import Photo, resize
from collectionlora.pictures.sheets import labelled_grid
from collectionlora.studio.making import Maker, Order
from collectionlora.studio.photo_input import Upload, keep_file
from collectionlora.studio.pictures import Studio
from collectionlora.studio.previews import VIEW_QUALITY
from collectionlora.studio.stamps import MAX_SEED, Settings, stamp
from collectionlora.studio.words import human_name
from collectionlora.system.errors import UserError, explain_fault

NOTHING = "nothing"  # no second effect
NO_PHOTO = "There is no photo yet: drop one first."
PHOTO_GONE = "The photo is no longer here: drop it again."  # uploads are kept for an hour
NO_MEMORY = "There is not enough memory for this: choose a smaller size."
NONE_ALONE = "Every effect of this collection needs reference images: there is no contact sheet."


def pick_seed(seed: float | None) -> float:
    """The seed of the box; a random one where it is empty."""
    return randrange(MAX_SEED + 1) if seed is None else seed


def refusal(message: str, title: str) -> gr.Error:
    """What the page and a client of the API show; it is no fault of the program, so nothing is logged."""
    return gr.Error(message, title=title, print_exception=False)


def read_settings(**values: Any) -> Settings:
    """Settings as a client gave them.

    Raises:
        gr.Error: a value that is missing or does not fit; names it.
    """
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise refusal(f"{first['loc'][0]}: {first['msg']}.", "Not possible") from None


def step_choices(taught: int) -> list[int]:
    """The numbers of steps that the page offers, with that of the recipe."""
    return sorted({8, 4, 2, 1, taught}, reverse=True)


def visitor_of(request: gr.Request) -> str:
    return str(request.session_hash)


class Handlers:
    """The endpoints of the API; one of these serves all visitors."""

    def __init__(self, studio: Studio, max_pixels: int):
        self.studio, self.max_pixels, self.maker = studio, max_pixels, Maker(studio)

    def read(self, upload: Upload | None) -> Photo:
        """An uploaded photo.

        Raises:
            gr.Error: there is none, or no longer, it is not an image, or it is too large.
        """
        if upload is None:
            raise refusal(NO_PHOTO, "No photo")
        if not upload.path.exists():
            raise refusal(PHOTO_GONE, "No photo")
        try:
            return upload.read(self.max_pixels)
        except UserError as error:
            raise refusal(f"This photo {error.message}; {error.hint}.", "Photo not read") from None

    def make(self, order: Order, request: gr.Request) -> Iterator[tuple[str, list[Photo]]]:
        """See `Maker.make`; its fault is one that Gradio shows.

        Raises:
            gr.Error: what the visitor asked for is not possible.
        """
        try:
            yield from self.maker.make(order, visitor_of(request))
        except UserError as error:
            raise refusal(f"{error.message}; {error.hint}.", "Not possible") from None
        except (MemoryError, RuntimeError) as error:
            if explain_fault(error) is None:
                raise
            raise refusal(NO_MEMORY, "Not possible") from None

    def edit(
        self,
        upload: Upload | None,
        effect: str,
        then: str,
        steps: float,
        seed: float | None,
        strength: float,
        size: float,
        request: gr.Request,
        *references: Upload | None,
    ) -> Iterator[tuple[Any, str]]:
        """The uploaded file, its edit as PNG, and how far it is; empty references do not count."""
        photo, given = self.read(upload), [self.read(image) for image in references if image is not None]
        assert upload is not None
        settings = read_settings(
            effects=list_effects(effect, then),
            steps=steps,
            seed=pick_seed(seed),
            strength=strength,
            size=size,
        )
        for status, pictures in self.make(Order(photo, [settings], given), request):
            if not pictures:
                yield gr.skip(), status
                continue
            full = Image.fromarray(resize(pictures[0], photo.shape[:2]))
            after = keep_file(settings.name_file(upload.name), full, **stamp(settings))
            yield (str(upload.path), str(after)), status

    def sheet(
        self,
        upload: Upload | None,
        steps: float,
        seed: float | None,
        strength: float,
        size: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any, str]]:
        """All effects of one photo alone as JPEG: a contact sheet, the single pictures, and how far it is."""
        photo, names = self.read(upload), self.studio.alone
        assert upload is not None
        for status, pictures in self.make(self.order_all(photo, steps, seed, strength, size), request):
            if not pictures:
                yield gr.skip(), gr.skip(), status
                continue
            full = [resize(picture, photo.shape[:2]) for picture in pictures]
            kept = [
                keep_view(f"{upload.name}-{name}.jpg", one) for name, one in zip(names, full, strict=True)
            ]
            sheet = keep_view(f"{upload.name}-all.jpg", self.lay_out(full))
            yield sheet, list(zip(kept, names, strict=True)), status

    def order_all(
        self, photo: Photo, steps: float, seed: float | None, strength: float, size: float
    ) -> Order:
        """Each effect that needs the photo alone.

        Raises:
            gr.Error: there is none.
        """
        if not self.studio.alone:
            raise refusal(NONE_ALONE, "Not possible")
        shared = {"steps": steps, "seed": pick_seed(seed), "strength": strength, "size": size}
        return Order(photo, [read_settings(effects=(name,), **shared) for name in self.studio.alone])

    def lay_out(self, pictures: Sequence[Photo]) -> Photo:
        """The contact sheet of pictures under all effects that need the photo alone."""
        return labelled_grid(dict(zip(map(human_name, self.studio.alone), pictures, strict=True)))

    def cancel(self, request: gr.Request) -> None:
        """Take back all that this visitor waits for."""
        self.maker.cancel(visitor_of(request))

    def effects(self) -> dict[str, str]:
        """The effects of the collection, each with the prompt that the student reads."""
        return dict(self.studio.recipe.effects)


def list_effects(effect: str, then: str) -> tuple[str, ...]:
    """The first effect, and the second if there is one."""
    return (effect,) if then == NOTHING else (effect, then)


def keep_view(name: str, picture: Photo) -> str:
    """The path of a picture to look at, as JPEG."""
    return str(keep_file(name, Image.fromarray(picture), quality=VIEW_QUALITY))
