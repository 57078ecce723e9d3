"""The web page, and with it the API: its endpoints are those of Gradio's Python client."""

import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from collectionlora.pictures.photos import Photo
from collectionlora.studio.handlers import NOTHING, pick_seed, step_choices
from collectionlora.studio.page_handlers import PageHandlers
from collectionlora.studio.photo_input import photo_input, write_examples
from collectionlora.studio.pictures import Studio
from collectionlora.studio.results import EMPTY, History
from collectionlora.studio.stamps import IN_TURN, MAX_SEED, TOGETHER
from collectionlora.studio.tile_search import write_search
from collectionlora.studio.words import human_name, title_of

FOLDER = Path(__file__).parent
STYLE = (FOLDER / "page.css").read_text(encoding="utf-8")
SCRIPT = (FOLDER / "page.js").read_text(encoding="utf-8")
# Functions of page.js.
SHOW_STRENGTH, SAVE = "value => showStrength(value)", "file => save(file)"
REST_STRENGTH = "(history, place) => restStrength(place)"
VARIATIONS = 4
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
AT_ONCE: dict[str, Any] = {**PRIVATE, "queue": False}


class Inputs(NamedTuple):
    """What a visitor sets, in the order in which the API takes it, but for `order`."""

    photo: gr.Image
    effect: gr.Radio
    then: gr.Dropdown
    order: gr.Radio
    steps: gr.Radio
    seed: gr.Number
    strength: gr.Slider
    size: gr.Slider
    references: list[gr.Image]


class Buttons(NamedTuple):
    generate: gr.Button
    variations: gr.Button
    stop: gr.Button


class Outputs(NamedTuple):
    """What was made: the result, the history's radio group, and the style sheet with its pictures."""

    result: gr.HTML
    history: gr.Radio
    tiles: gr.HTML
    download: gr.Button


def build_page(studio: Studio, previews: dict[str, Photo], max_pixels: int) -> gr.Blocks:
    """The whole page.

    Args:
        previews: a picture of each effect that needs the photo alone.
        max_pixels: of an uploaded photo.
    """
    handlers, title = PageHandlers(studio, previews, max_pixels), title_of(studio.place)
    with gr.Blocks(
        title=f"{title} · collectionlora", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.HTML(write_heading(title, len(studio.effects)), elem_classes="title")
        with gr.Tab("Studio"):
            inputs = build_studio(studio, handlers)
        with gr.Tab("All effects"):
            build_sheet(handlers, inputs)
        with gr.Tab("Collection"):
            build_collection(studio)
        build_api(handlers, inputs)
        page.load(None, js=f"() => {{{SCRIPT}}}", **AT_ONCE)
    return page


def write_heading(title: str, count: int) -> str:
    """What the page is."""
    effects = f"{count} effects" if count > 1 else "One effect"
    return f"<h1>{html.escape(title)}</h1><p>{effects} from one model file.</p>"


def build_studio(studio: Studio, handlers: PageHandlers) -> Inputs:
    """Photo, effects and options on the left, the result on the right; on a phone the options are last."""
    history = gr.State(History())
    with gr.Row(elem_classes="bench"):
        with gr.Column(elem_classes="photo-pane"):
            photo = photo_input("Photo", 150)
            with gr.Row(elem_classes="examples"):
                examples = [
                    (gr.Button(label, size="sm", icon=path, min_width=60), path)
                    for label, path in write_examples().items()
                ]
        with gr.Column(elem_classes="effects-pane"):
            gr.HTML(write_search(studio.effects), elem_classes="search")
            choices = [(human_name(name), name) for name in studio.effects]
            effect = gr.Radio(choices, value=studio.effects[0], label="Effect", elem_classes="effects tiles")
            pictures = gr.HTML(handlers.example_tiles, elem_classes="sheet-of-style")
        with gr.Column(elem_classes="actions"):
            status = gr.HTML("Drop a photo, or take an example.", elem_classes="status")
            buttons = build_buttons()
        with gr.Column(elem_classes="options-pane"), gr.Accordion("More options", open=False):
            then, order, steps, seed, size = option_inputs(studio)
            references = [
                photo_input(f"Reference {place}", 150) for place in range(1, studio.max_references + 1)
            ]
        with gr.Column(elem_classes="result-pane"):
            outputs, strength = build_result()
    inputs = Inputs(photo, effect, then, order, steps, seed, strength, size, references)
    for button, path in examples:
        button.click(partial(str, path), outputs=photo, **AT_ONCE)
    connect_photo(handlers, inputs, outputs, pictures, status)
    connect_making(handlers, inputs, buttons, outputs, history, status)
    connect_result(handlers, strength, outputs, buttons.stop, history, status)
    buttons.stop.click(handlers.cancel, api_name="cancel", queue=False)
    return inputs


def build_buttons() -> Buttons:
    with gr.Row():
        return Buttons(
            gr.Button("Generate", variant="primary", min_width=90, elem_classes="generate"),
            gr.Button("4 variations", min_width=90),
            gr.Button("Cancel", min_width=70, interactive=False),
        )


def option_inputs(studio: Studio) -> tuple[gr.Dropdown, gr.Radio, gr.Radio, gr.Number, gr.Slider]:
    """A second effect and how it is applied, steps, seed, and size."""
    choices = [("Nothing", NOTHING), *((human_name(name), name) for name in studio.effects)]
    then = gr.Dropdown(choices, value=NOTHING, label="Second effect", min_width=120)
    info = f"{IN_TURN.capitalize()}: each effect takes all the steps."
    order = gr.Radio([TOGETHER, IN_TURN], value=TOGETHER, label="Two effects", info=info)
    steps = gr.Radio(
        step_choices(studio.recipe.steps),
        value=studio.recipe.steps,
        label="Steps",
        info="Fewer are faster.",
        min_width=230,
    )
    with gr.Row():
        seed = gr.Number(
            0,
            label="Seed",
            info="Leave it empty for a new picture each time.",
            precision=0,
            minimum=0,
            maximum=MAX_SEED,
            min_width=80,
        )
        dice = gr.Button("Random seed", min_width=80)
    dice.click(partial(pick_seed, None), outputs=seed, **AT_ONCE)
    (least, most, step), taught = studio.sizes, studio.recipe.resolution
    info = f"Pixels a side, roughly; the picture is then enlarged. The effects were trained at {taught}."
    size = gr.Slider(least, most, value=taught, step=step, label="Size", info=info)
    return then, order, steps, seed, size


def build_result() -> tuple[Outputs, gr.Slider]:
    result = gr.HTML(EMPTY, elem_classes="result")
    with gr.Row(elem_classes="below"):
        strength = gr.Slider(0, 1, value=1, step=0.05, label="Strength", min_width=200)
        download = gr.Button("Download PNG", min_width=140, scale=0)
    made = gr.Radio([], label="Made so far", elem_classes="history tiles")
    return Outputs(result, made, gr.HTML("", elem_classes="sheet-of-style"), download), strength


def connect_photo(
    handlers: PageHandlers, inputs: Inputs, outputs: Outputs, pictures: gr.HTML, status: gr.HTML
) -> None:
    """A new photo is checked; then its previews are made, while the visitor may go on."""
    photo, settings = inputs.photo, inputs[1:-1]
    received = photo.change(
        handlers.receive,
        photo,
        [photo, outputs.result, outputs.history, status, *settings],
        show_progress="hidden",
        concurrency_limit=None,
        **PRIVATE,
    )
    received.then(
        handlers.preview, photo, pictures, show_progress="hidden", concurrency_limit=None, **PRIVATE
    )


def connect_making(
    handlers: PageHandlers,
    inputs: Inputs,
    buttons: Buttons,
    outputs: Outputs,
    history: gr.State,
    status: gr.HTML,
) -> None:
    """Generate and a click on an effect make one picture, 4 variations make as many."""
    asked = [history, *inputs[:-1], *inputs.references]
    shown = [outputs.result, outputs.history, outputs.tiles, status, buttons.stop]
    options = {"show_progress": "hidden", "concurrency_limit": None, **PRIVATE}
    gr.on(
        [buttons.generate.click, inputs.effect.input],
        handlers.generate,
        [gr.State(1), *asked],
        shown,
        trigger_mode="always_last",
        **options,
    )
    buttons.variations.click(handlers.generate, [gr.State(VARIATIONS), *asked], shown, **options)


def connect_result(
    handlers: PageHandlers,
    strength: gr.Slider,
    outputs: Outputs,
    stop: gr.Button,
    history: gr.State,
    status: gr.HTML,
) -> None:
    """The history, the download, and the strength.

    While the dial moves the browser mixes photo and picture; once it rests the network makes the true one.
    """
    chosen, shown = [history, outputs.history, strength], [outputs.result, status, stop]
    options = {"show_progress": "hidden", "concurrency_limit": None, **PRIVATE}
    outputs.history.input(handlers.show, chosen, outputs.result, show_progress="hidden", **AT_ONCE).then(
        handlers.dial, chosen, shown, **options
    )
    strength.change(None, strength, js=SHOW_STRENGTH, **AT_ONCE)
    strength.input(handlers.dial, chosen, shown, js=REST_STRENGTH, trigger_mode="always_last", **options)
    file = gr.DownloadButton(visible="hidden")
    outputs.download.click(handlers.download, chosen, [file, *shown], **options).then(
        None, file, js=SAVE, **AT_ONCE
    )


def build_sheet(handlers: PageHandlers, inputs: Inputs) -> None:
    """One picture of the photo under all effects."""
    with gr.Row(elem_classes="below"):
        every = gr.Button("Make the contact sheet", variant="primary", min_width=220, scale=0)
        stop = gr.Button("Cancel", min_width=90, scale=0, interactive=False)
    status = gr.HTML("One picture that shows your photo under every effect.", elem_classes="status")
    sheet = gr.Image(
        label="Contact sheet",
        show_label=False,
        format="jpeg",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_classes="sheet",
    )
    every.click(
        handlers.page_sheet,
        [inputs.photo, inputs.steps, inputs.seed, inputs.strength, inputs.size],
        [sheet, status, stop],
        show_progress="hidden",
        concurrency_limit=None,
        **PRIVATE,
    )
    stop.click(handlers.cancel, **AT_ONCE)


def build_api(handlers: PageHandlers, inputs: Inputs) -> None:
    """Endpoints whose results the page does not show: pictures at the photo's size."""
    with gr.Row(visible=False):
        trigger, status = gr.Button(), gr.Textbox(label="Status")
        pair = gr.ImageSlider(label="Before and after", format="png")
        sheet, pictures = gr.Image(label="Contact sheet", format="jpeg"), gr.Gallery(format="jpeg")
    sampling = [inputs.steps, inputs.seed, inputs.strength, inputs.size]
    trigger.click(
        handlers.edit,
        [inputs.photo, inputs.effect, inputs.then, *sampling, *inputs.references],
        [pair, status],
        api_name="edit",
        concurrency_limit=None,
    )
    trigger.click(
        handlers.sheet,
        [inputs.photo, *sampling],
        [sheet, pictures, status],
        api_name="sheet",
        concurrency_limit=None,
    )
    gr.api(handlers.effects, api_name="effects")


def build_collection(studio: Studio) -> None:
    """What the collection is, the effects' prompts, and the report of `bench`."""
    base, side = studio.recipe.base, studio.recipe.resolution
    if Path(base).is_dir():
        base = Path(base).resolve().name  # where it lies is the machine's own matter
    gr.Markdown(
        f"One LoRA file holds {len(studio.effects)} effects. It works on the model {base}, its base. "
        f"A picture is made with about {side} x {side} pixels, then enlarged to the size of your photo."
    )
    gr.HTML(write_prompts(studio.prompts()), elem_classes="prompts")
    report = studio.report()
    if report is not None:
        # Shown as it was written, in a frame that runs nothing and reaches nothing.
        gr.HTML(f'<iframe class="report" sandbox title="Report" srcdoc="{html.escape(report)}"></iframe>')


def write_prompts(rows: Sequence[tuple[str, str, str]]) -> str:
    """A table of effect, prompt and the teacher's prompt; the last is left out where none is known."""
    headers = ("Effect", "Prompt", "Prompt of its teacher")
    columns = 3 if any(taught for _, _, taught in rows) else 2  # a lone file does not know its teachers
    head = "".join(f'<th scope="col">{text}</th>' for text in headers[:columns])
    body = "".join(
        f'<tr><th scope="row">{html.escape(human_name(name))}</th>'
        + "".join(f"<td>{html.escape(text)}</td>" for text in texts[: columns - 1])
        + "</tr>"
        for name, *texts in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
