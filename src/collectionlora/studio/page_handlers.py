"""What the page's buttons do: it shows JPEG, tells faults in its status line, and keeps a history."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from collectionlora.pictures.photos import Photo
from collectionlora.studio.handlers import (
    NOTHING,
    Handlers,
    list_effects,
    pick_seed,
    read_settings,
    step_choices,
    visitor_of,
)
from collectionlora.studio.making import Order
from collectionlora.studio.photo_input import Upload, keep_file
from collectionlora.studio.pictures import Studio
from collectionlora.studio.previews import draw_on_tiles
from collectionlora.studio.results import EMPTY, WHOLE, History, Made, show_made
from collectionlora.studio.stamps import MAX_SEED, read_stamp, stamp
from collectionlora.system.errors import UserError

NO_PICTURE = "There is no picture yet: make one first."


class PageHandlers(Handlers):
    """The handlers of the API, and those of the page.

    Args:
        previews: a picture of each effect that needs the photo alone, for tiles while there is no photo.
    """

    def __init__(self, studio: Studio, previews: dict[str, Photo], max_pixels: int):
        super().__init__(studio, max_pixels)
        self.example_tiles = self.draw_tiles(previews)

    def draw_tiles(self, pictures: dict[str, Photo]) -> str:
        """The style sheet of the effects' tiles."""
        return draw_on_tiles("effects", [pictures.get(name) for name in self.studio.effects])

    def stop_button(self, request: gr.Request) -> gr.Button:
        """`Cancel`, which can be clicked while its visitor waits for something."""
        return gr.Button(interactive=self.maker.is_busy(visitor_of(request)))

    def receive(self, upload: Upload | None) -> tuple[Any, ...]:
        """A photo was put in, or taken out: (photo, result, place in the history, status, settings...).

        The result of another photo goes. A picture made here brings its settings back.
        """
        kept = [gr.skip()] * 7
        if upload is None:
            return gr.skip(), EMPTY, None, gr.skip(), *kept
        try:
            photo = self.read(upload)
        except gr.Error as error:
            return None, EMPTY, None, error.message, *kept
        shown = upload.make_visible(photo)
        value = gr.skip() if shown == upload.path else str(shown)
        settings = read_stamp(upload.path, self.studio.effects)
        if settings is None:
            return value, EMPTY, None, "Click an effect.", *kept
        first, *others = settings.effects
        offered = settings.steps in step_choices(self.studio.recipe.steps)
        steps = settings.steps if offered else gr.skip()
        least, most, _ = self.studio.sizes
        size = settings.size or self.studio.recipe.resolution
        restored = (first, *(others or [NOTHING]), settings.order, steps, settings.seed, settings.strength)
        status = f"The settings of this picture are back: {settings.describe_effects()}."
        return value, EMPTY, None, status, *restored, size if least <= size <= most else gr.skip()

    def preview(self, upload: Upload | None, request: gr.Request) -> Any:
        """The tiles with the visitor's own photo under every effect; as they are if it was taken back."""
        try:
            photo = None if upload is None else upload.read(self.max_pixels)
        except UserError:  # said by `receive`
            photo = None
        pictures = self.maker.preview(photo, visitor_of(request))
        if photo is None:
            return self.example_tiles
        if pictures is None:
            return gr.skip()
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
        size: float,
        request: gr.Request,
        *references: Upload | None,
    ) -> Iterator[tuple[Any, Any, Any, str, gr.Button]]:
        """`count` pictures with seeds in a row: (result, the history's choices and pictures, status, stop).

        They are made at full strength too, which the page mixes with the photo while the dial moves.
        """
        start, brought = time.monotonic(), [image for image in references if image is not None]
        try:
            photo, given = self.read(upload), [self.read(image) for image in brought]
            assert upload is not None
            first = read_settings(
                effects=list_effects(effect, then),
                order=order,
                steps=steps,
                seed=pick_seed(seed),
                strength=strength,
                size=size,
            )
            wanted = [
                first.model_copy(update={"seed": (first.seed + place) % (MAX_SEED + 1), "strength": each})
                for each in dict.fromkeys([WHOLE, strength])
                for place in range(count)
            ]
            for status, pictures in self.make(Order(photo, wanted, given), request):
                stop = self.stop_button(request)
                if not pictures:
                    yield gr.skip(), gr.skip(), gr.skip(), status, stop
                    continue
                seconds = time.monotonic() - start
                made = [
                    Made(upload, brought, photo.shape[:2], settings, whole, dialled, seconds)
                    for settings, whole, dialled in zip(
                        wanted[-count:], pictures[:count], pictures[-count:], strict=True
                    )
                ]
                history.add(made)
                choices = gr.Radio(choices=history.choices(), value=0)
                yield show_made(made[0], strength), choices, history.tiles(), status, stop
        except gr.Error as error:
            yield gr.skip(), gr.skip(), gr.skip(), error.message, self.stop_button(request)

    def show(self, history: History, place: int | None, strength: float) -> str:
        """A picture of the history, mixed where its strength is another."""
        return EMPTY if place is None else show_made(history.pictures[place], strength)

    def dial(
        self, history: History, place: int | None, strength: float, request: gr.Request
    ) -> Iterator[tuple[Any, str, gr.Button]]:
        """A picture of the history as the network makes it at a strength: (result, status, stop)."""
        if place is None:
            return
        made = history.pictures[place]
        try:
            if made.at(strength) is None:
                photo, given = self.read(made.upload), [self.read(image) for image in made.references]
                wanted = [made.settings.model_copy(update={"strength": strength})]
                for status, pictures in self.make(Order(photo, wanted, given), request):
                    if pictures:
                        made.dial(strength, pictures[0])
                    yield gr.skip(), status, self.stop_button(request)
        except gr.Error as error:
            yield gr.skip(), error.message, self.stop_button(request)
            return
        if made in history.pictures[place : place + 1]:  # the visitor may have made another one meanwhile
            yield show_made(made, strength), gr.skip(), gr.skip()

    def download(
        self, history: History, place: int | None, strength: float, request: gr.Request
    ) -> Iterator[tuple[str | None, Any, str, Any]]:
        """A PNG at the photo's size, with its settings inside: (file, result, status, stop)."""
        if place is None:
            yield None, gr.skip(), NO_PICTURE, gr.skip()
            return
        made = history.pictures[place]
        for shown in self.dial(history, place, strength, request):
            yield None, *shown
        picture = made.at(strength)
        if picture is None:
            return  # cancelled, or the photo is gone, as the status says
        settings = made.settings.model_copy(update={"strength": strength})
        name = settings.name_file(made.upload.name)
        full = Image.fromarray(made.enlarge(picture))
        yield str(keep_file(name, full, **stamp(settings))), gr.skip(), f"saved as {name}", gr.skip()

    def page_sheet(
        self,
        upload: Upload | None,
        steps: float,
        seed: float | None,
        strength: float,
        size: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, str, gr.Button]]:
        """The contact sheet alone."""
        try:
            order = self.order_all(self.read(upload), steps, seed, strength, size)
            for status, pictures in self.make(order, request):
                shown = self.lay_out(pictures) if pictures else gr.skip()
                yield shown, status, self.stop_button(request)
        except gr.Error as error:
            yield gr.skip(), error.message, self.stop_button(request)
