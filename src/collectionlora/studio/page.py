"""The web page, and with it the API: every button is a named endpoint of Gradio's Python client."""

import html
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from collectionlora.pictures.photos import Photo, read_photo, resize, to_photos
from collectionlora.pictures.sheets import labelled_grid
from collectionlora.studio.batching import Cancelled, Job
from collectionlora.studio.pictures import Studio
from collectionlora.system.errors import UserError

NOTHING = "nothing"  # no second effect
STYLE = """
.gradio-container {width: 100%; max-width: 1180px !important; margin: auto}
.status {min-height: 1.6em}
.effects .grid-wrap {max-height: 260px}
.effects .grid-container {grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)) !important}
iframe.report {width: 100%; height: 75vh; border: 1px solid var(--border-color-primary); border-radius: 8px}
"""


class Handlers:
    """What the buttons do; one of these serves all visitors.

    `running` holds the unfinished jobs of each visitor's session, for `cancel`.
    """

    def __init__(self, studio: Studio, max_pixels: int):
        self.studio, self.max_pixels = studio, max_pixels
        self.running: dict[str, list[Job]] = {}

    def read_upload(self, payload: Any) -> Photo | None:
        """An uploaded file as a photo, by the same rules as everywhere.

        Raises:
            gr.Error: it is no image, or too large.
        """
        if payload is None:
            return None
        try:
            return read_photo(Path(payload.path), self.max_pixels)
        except UserError as error:
            raise gr.Error(f"This photo {error.message}; {error.hint}.", title="Photo not read") from None

    def make(
        self,
        photo: Photo | None,
        wanted: list[list[str]],
        steps: float,
        seed: float,
        strength: float,
        visitor: str,
        references: Sequence[Photo] = (),
    ) -> Iterator[tuple[str, list[Photo]]]:
        """Status lines while pictures are made, the last one with the pictures; none if it was cancelled."""
        if photo is None:
            raise gr.Error("There is no photo yet: drop one first.", title="No photo")
        try:
            jobs = self.studio.submit(photo, wanted, int(steps), int(seed or 0), strength, references)
        except UserError as error:
            raise gr.Error(f"{error.message}; {error.hint}.", title="Not possible") from None
        self.running.setdefault(visitor, []).extend(jobs)
        total = int(steps)
        try:
            yield "waiting for its turn", []
            for index, job in enumerate(jobs):
                for done in job.steps():
                    yield f"picture {index + 1} of {len(jobs)}, step {done} of {total}", []
            pictures = [resize(to_photos(job.picture())[0], photo.shape[:2]) for job in jobs]
            yield "done", pictures
        except Cancelled:
            yield "cancelled", []
        finally:
            for job in jobs:
                job.cancel()
                self.running[visitor].remove(job)

    def edit(
        self,
        photo: Photo | None,
        effect: str,
        then: str,
        steps: float,
        seed: float,
        strength: float,
        request: gr.Request,
        *references: Photo | None,
    ) -> Iterator[tuple[Any, str]]:
        """The photo and its edit, and a line on how far it is; empty places for references do not count."""
        effects = [effect] if then == NOTHING else [effect, then]
        given, visitor = [image for image in references if image is not None], visitor_of(request)
        for status, pictures in self.make(photo, [effects], steps, seed, strength, visitor, given):
            yield (photo, pictures[0]) if pictures else gr.skip(), status

    def sheet(
        self, photo: Photo | None, steps: float, seed: float, strength: float, request: gr.Request
    ) -> Iterator[tuple[Any, Any, str]]:
        """All effects of one photo alone: a contact sheet, the single pictures, a line on how far it is."""
        names = self.studio.alone
        wanted = [[name] for name in names]
        for status, pictures in self.make(photo, wanted, steps, seed, strength, visitor_of(request)):
            if pictures:
                sheet = labelled_grid(dict(zip(names, pictures, strict=True)))
                yield sheet, list(zip(pictures, names, strict=True)), status
            else:
                yield gr.skip(), gr.skip(), status

    def cancel(self, request: gr.Request) -> None:
        """Take back all that this visitor waits for."""
        for job in self.running.get(visitor_of(request), []):
            job.cancel()

    def effects(self) -> dict[str, str]:
        """The effects of the collection, each with the prompt that the student reads."""
        return dict(self.studio.recipe.effects)


async def keep_upload(photo: gr.Image, place: str | None) -> str | None:
    """Where an uploaded file lies. Gradio would also fetch an address that a visitor sends in its place.

    Raises:
        gr.Error: it is an address.
    """
    if place is not None and "://" in str(place):
        raise gr.Error("Send a file: addresses are not fetched.", title="Photo not read")
    return await gr.Image.async_move_resource_to_block_cache(photo, place)


def visitor_of(request: gr.Request) -> str:
    return str(request.session_hash)


def build_page(studio: Studio, previews: dict[str, Photo], max_pixels: int) -> gr.Blocks:
    """The whole page.

    Args:
        previews: a picture of each effect.
        most_pixels: of an uploaded photo.
    """
    handlers = Handlers(studio, max_pixels)
    name, base = studio.place.resolve().stem, studio.recipe.base
    if Path(base).is_dir():
        base = Path(base).resolve().name  # where it lies is the machine's own matter
    with gr.Blocks(
        title=f"{name} · collectionlora", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.Markdown(f"# {name}\n{len(studio.effects)} effects in one LoRA, over {base}")
        with gr.Tab("Studio"):
            build_studio(studio, previews, handlers)
        with gr.Tab("Collection"):
            build_collection(studio)
        gr.api(handlers.effects, api_name="effects")
    return page


def build_studio(studio: Studio, previews: dict[str, Photo], handlers: Handlers) -> None:
    """What to make on the left, what was made on the right; one below the other on a phone."""
    with gr.Row():
        with gr.Column(min_width=280):
            photo = photo_input(handlers, "Photo", 300)
            effects = effect_inputs(studio, previews)
            references = reference_inputs(studio, handlers)
            sampling = sampling_inputs(studio)
            with gr.Row():
                one = gr.Button("Generate", variant="primary", min_width=100)
                every = gr.Button("All effects", min_width=100)
                stop = gr.Button("Cancel", min_width=100)
            status = gr.Markdown("", elem_classes="status")
        with gr.Column(min_width=280), gr.Tabs() as results:
            with gr.Tab("One effect", id="one"):
                result = gr.ImageSlider(
                    label="Before and after", format="png", interactive=False, elem_classes="result"
                )
            with gr.Tab("All effects", id="all"):
                sheet = gr.Image(label="Contact sheet", format="png", interactive=False, elem_classes="sheet")
                pictures = gr.Gallery(
                    show_label=False,
                    format="png",
                    columns=3,
                    height="auto",
                    interactive=False,
                    elem_classes="pictures",
                )

    def show(tab: str) -> gr.Tabs:
        return gr.Tabs(selected=tab)

    hidden: dict[str, Any] = {"api_visibility": "private", "queue": False}
    one.click(partial(show, "one"), outputs=results, **hidden)
    every.click(partial(show, "all"), outputs=results, **hidden)
    one.click(
        handlers.edit,
        [photo, *effects, *sampling, *references],
        [result, status],
        api_name="edit",
        show_progress_on=result,
        concurrency_limit=None,
    )
    every.click(
        handlers.sheet,
        [photo, *sampling],
        [sheet, pictures, status],
        api_name="sheet",
        show_progress_on=sheet,
        concurrency_limit=None,
    )
    stop.click(handlers.cancel, api_name="cancel", queue=False)


def photo_input(handlers: Handlers, label: str, height: int) -> gr.Image:
    """A place to drop an image; Gradio's own reader knows no pixel limit and answers a bad file at length."""
    sources = ["upload", "clipboard"]
    photo = gr.Image(label=label, sources=sources, height=height, min_width=120, elem_classes="photo")
    photo.preprocess = handlers.read_upload
    photo.async_move_resource_to_block_cache = partial(keep_upload, photo)
    return photo


def reference_inputs(studio: Studio, handlers: Handlers) -> list[gr.Image]:
    """Places for reference images, if any effect was taught with some."""
    if not studio.max_references:
        return []
    with gr.Row():
        places = range(1, studio.max_references + 1)
        return [photo_input(handlers, f"Reference {place}", 160) for place in places]


def effect_inputs(studio: Studio, previews: dict[str, Photo]) -> list[gr.Dropdown]:
    """The effect and a second one; a click on a preview chooses the first."""
    gallery = gr.Gallery(
        [(picture, name) for name, picture in previews.items()],
        show_label=False,
        columns=4,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        format="png",
        buttons=[],
        elem_classes="effects",
    )
    with gr.Row():
        effect = gr.Dropdown(studio.effects, value=studio.effects[0], label="Effect", min_width=120)
        then = gr.Dropdown([NOTHING, *studio.effects], value=NOTHING, label="Then", min_width=120)

    def pick(event: gr.SelectData) -> str:
        return studio.alone[event.index]

    gallery.select(pick, outputs=effect, api_visibility="private", queue=False)
    return [effect, then]


def sampling_inputs(studio: Studio) -> list[Any]:
    """Steps, seed and strength."""
    choices = sorted({8, 4, 2, 1, studio.recipe.steps}, reverse=True)
    with gr.Row():
        steps = gr.Radio(choices, value=studio.recipe.steps, label="Steps", scale=3, min_width=230)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, scale=1, min_width=80)
    strength = gr.Slider(0, 1, value=1, step=0.05, label="Strength")
    return [steps, seed, strength]


def build_collection(studio: Studio) -> None:
    """The effects' prompts, and the report of `bench`."""
    headers, rows = ["Effect", "The student reads", "Its teacher was trained with"], studio.prompts()
    columns = 3 if any(taught for _, _, taught in rows) else 2  # a lone file does not know its teachers
    gr.Dataframe(
        [list(row)[:columns] for row in rows],
        headers=headers[:columns],
        interactive=False,
        wrap=True,
    )
    report = studio.report()
    if report is None:
        gr.Markdown(f"No report yet. Make one: `collectionlora bench {studio.place}`")
    else:
        # Shown as it was written, in a frame that runs nothing and reaches nothing.
        gr.HTML(f'<iframe class="report" sandbox title="Report" srcdoc="{html.escape(report)}"></iframe>')
