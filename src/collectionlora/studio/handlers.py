"""What the page's buttons and the API's endpoints do; one of these serves all visitors."""

import time
from collections.abc import Iterator, Sequence
from random import randrange
from typing import Any

import gradio as gr
from PIL import Image

from collectionlora.pictures.photos import Photo, resize, to_photos
from collectionlora.pictures.sheets import labelled_grid
from collectionlora.studio.making import Maker, Order
from collectionlora.studio.photo_input import Upload, keep_file
from collectionlora.studio.pictures import Studio
from collectionlora.studio.previews import draw_on_tiles
from collectionlora.studio.results import SAMPLED, History, Made, show_made
from collectionlora.studio.stamps import MAX_SEED, Settings, read_stamp, stamp
from collectionlora.studio.words import human_name
from collectionlora.system.errors import UserError

NOTHING = "nothing"  # no second effect
NO_PHOTO = "There is no photo yet: drop one first."
NO_PICTURE = "There is no picture yet: make one first."
PHOTO_GONE = "The photo is no longer here: drop it again."
NONE_ALONE = "Every effect of this collection needs reference images: there is no contact sheet."


def pick_seed(seed: float | None) -> int:
    """The seed of the box; a random one where it is empty."""
    return randrange(MAX_SEED + 1) if seed is None else int(seed)


def step_choices(taught: int) -> list[int]:
    """The numbers of steps that the page offers, with that of the recipe."""
    return sorted({8, 4, 2, 1, taught}, reverse=True)


def visitor_of(request: gr.Request) -> str:
    return str(request.session_hash)


class Handlers:
    """The endpoints of the API: pictures come at the photo's size, as PNG."""

    def __init__(self, studio: Studio, max_pixels: int):
        self.studio, self.max_pixels, self.maker = studio, max_pixels, Maker(studio)

    def read(self, upload: Upload | None) -> Photo:
        """An uploaded photo.

        Raises:
            gr.Error: there is none, it is not an image, or too large.
        """
        if upload is None:
            raise gr.Error(NO_PHOTO, title="No photo")
        try:
            return upload.read(self.max_pixels)
        except UserError as error:
            raise gr.Error(f"This photo {error.message}; {error.hint}.", title="Photo not read") from None

    def make(self, order: Order, request: gr.Request) -> Iterator[tuple[str, list[Photo]]]:
        """See `Maker.make`; its fault is one that Gradio shows.

        Raises:
            gr.Error: what the visitor asked for is not possible.
        """
        try:
            yield from self.maker.make(order, visitor_of(request))
        except UserError as error:
            raise gr.Error(f"{error.message}; {error.hint}.", title="Not possible") from None

    def edit(
        self,
        upload: Upload | None,
        effect: str,
        then: str,
        steps: float,
        seed: float | None,
        strength: float,
        request: gr.Request,
        *references: Upload | None,
    ) -> Iterator[tuple[Any, str]]:
        """The uploaded file and its edit, and a line on how far it is; empty references do not count."""
        photo, given = self.read(upload), [self.read(image) for image in references if image is not None]
        assert upload is not None
        effects = [effect] if then == NOTHING else [effect, then]
        order = Order(photo, [[effects]], [pick_seed(seed)], int(steps), strength, given)
        for status, pictures in self.make(order, request):
            done = [resize(picture, photo.shape[:2]) for picture in pictures]
            yield (str(upload.path), done[0]) if done else gr.skip(), status

    def sheet(
        self,
        upload: Upload | None,
        steps: float,
        seed: float | None,
        strength: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any, str]]:
        """All effects of one photo alone: a contact sheet, the single pictures, a line on how far it is."""
        photo, names = self.read(upload), self.studio.alone
        for status, pictures in self.make(self.order_all(photo, steps, seed, strength), request):
            if pictures:
                full = [resize(picture, photo.shape[:2]) for picture in pictures]
                yield self.lay_out(full), list(zip(full, names, strict=True)), status
            else:
                yield gr.skip(), gr.skip(), status

    def order_all(self, photo: Photo, steps: float, seed: float | None, strength: float) -> Order:
        """Each effect that needs the photo alone.

        Raises:
            gr.Error: there is none.
        """
        names = self.studio.alone
        if not names:
            raise gr.Error(NONE_ALONE, title="Not possible")
        return Order(
            photo, [[[name]] for name in names], [pick_seed(seed)] * len(names), int(steps), strength
        )

    def lay_out(self, pictures: Sequence[Photo]) -> Photo:
        """The contact sheet of pictures under all effects that need the photo alone."""
        return labelled_grid(dict(zip(map(human_name, self.studio.alone), pictures, strict=True)))

    def cancel(self, request: gr.Request) -> None:
        """Take back all that this visitor waits for."""
        self.maker.cancel(visitor_of(request))

    def effects(self) -> dict[str, str]:
        """The effects of the collection, each with the prompt that the student reads."""
        return dict(self.studio.recipe.effects)


class PageHandlers(Handlers):
    """What the page does: it shows JPEG, tells faults in its status line, and keeps a history.

    Args:
        previews: a picture of each effect that needs the photo alone, for tiles while there is no photo.
    """

    def __init__(self, studio: Studio, previews: dict[str, Photo], max_pixels: int):
        super().__init__(studio, max_pixels)
        self.example_tiles = self.draw_tiles(previews)

    def draw_tiles(self, pictures: dict[str, Photo]) -> str:
        """The style sheet of the effects' tiles."""
        return draw_on_tiles("effects", [pictures.get(name) for name in self.studio.effects])

    def receive(self, upload: Upload | None) -> tuple[Any, ...]:
        """A photo was put in, or taken out: (photo, result, place in the history, status, settings...).

        The result of another photo goes. A picture made here brings its settings back.
        """
        kept = [gr.skip()] * 6
        if upload is None:
            return gr.skip(), "", None, gr.skip(), *kept
        try:
            photo = self.read(upload)
        except gr.Error as error:
            return None, "", None, error.message, *kept
        shown = upload.make_visible(photo)
        value = gr.skip() if shown == upload.path else str(shown)
        settings = read_stamp(upload.path, self.studio.effects)
        if settings is None:
            return value, "", None, "Click an effect.", *kept
        first, *others = settings.effects
        offered = settings.steps in step_choices(self.studio.recipe.steps)
        steps = settings.steps if offered else gr.skip()
        restored = (first, *(others or [NOTHING]), settings.order, steps, settings.seed)
        status = f"The settings of this picture are back: {settings.describe_effects()}."
        return value, "", None, status, *restored, settings.strength

    def preview(self, upload: Upload | None) -> str:
        """The tiles with the visitor's own photo under every effect."""
        if upload is None:
            return self.example_tiles
        try:
            jobs = self.studio.submit_previews(upload.read(self.max_pixels))
        except UserError:  # said by `receive`
            return self.example_tiles
        pictures = [to_photos(job.picture())[0] for job in jobs]
        return self.draw_tiles(dict(zip(self.studio.alone, pictures, strict=True)))

    def generate(
        self,
        count: int,
        history: History,
        upload: Upload | None,
        effect: str,
        then: str,
        order: str,
        steps: float,
        seed: float | None,
        strength: float,
        request: gr.Request,
        *references: Upload | None,
    ) -> Iterator[tuple[Any, Any, Any, str]]:
        """`count` pictures with seeds in a row: (result, the history's choices and pictures, status)."""
        start = time.monotonic()
        try:
            photo, given = self.read(upload), [self.read(image) for image in references if image is not None]
            assert upload is not None
            effects, first = [effect] if then == NOTHING else [effect, then], pick_seed(seed)
            wanted = [
                Settings(
                    effects=effects,
                    order=order,
                    steps=int(steps),
                    seed=(first + place) % (MAX_SEED + 1),
                    strength=SAMPLED,
                )
                for place in range(count)
            ]
            seeds = [settings.seed for settings in wanted]
            passes = [settings.passes for settings in wanted]
            work = Order(photo, passes, seeds, int(steps), SAMPLED, given)
            for status, pictures in self.make(work, request):
                if not pictures:
                    yield gr.skip(), gr.skip(), gr.skip(), status
                    continue
                seconds = time.monotonic() - start
                made = [
                    Made(upload, small, photo.shape[:2], settings, seconds)
                    for small, settings in zip(pictures, wanted, strict=True)
                ]
                history.add(made)
                choices = gr.Radio(choices=history.choices(), value=0)
                yield show_made(made[0], strength), choices, history.tiles(), status
        except gr.Error as error:
            yield gr.skip(), gr.skip(), gr.skip(), error.message

    def show(self, history: History, place: int | None, strength: float) -> str:
        """A picture of the history."""
        return "" if place is None else show_made(history.pictures[place], strength)

    def download(self, history: History, place: int | None, strength: float) -> tuple[str | None, str]:
        """A picture at the photo's size as PNG with its settings inside, and a line on it."""
        if place is None:
            return None, NO_PICTURE
        made = history.pictures[place]
        settings = made.settings.model_copy(update={"strength": strength})
        name = settings.name_file(made.upload.name)
        try:
            picture = Image.fromarray(made.full(strength, self.max_pixels))
        except UserError:  # uploads are kept for an hour
            return None, PHOTO_GONE
        return str(keep_file(name, picture, **stamp(settings))), f"saved as {name}"

    def page_sheet(
        self,
        upload: Upload | None,
        steps: float,
        seed: float | None,
        request: gr.Request,
    ) -> Iterator[tuple[Any, str]]:
        """The contact sheet alone."""
        try:
            photo = self.read(upload)
            for status, pictures in self.make(self.order_all(photo, steps, seed, SAMPLED), request):
                yield self.lay_out(pictures) if pictures else gr.skip(), status
        except gr.Error as error:
            yield gr.skip(), error.message
