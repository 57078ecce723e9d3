"""The kinds of ordinary edits: how each is asked for, and what it does.

Whatever is drawn is named in the instruction, so the words alone fix the truth; only what an added subject
looks like, and its exact place, stay open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from . import ordinary_pixels as pixels
from .crops import Scene, UInt8Image, check_photo
from .ordinary_pixels import AMOUNTS

HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
FRAME_COLOURS = ("black", "white", "red", "green", "blue", "yellow")


@dataclass(frozen=True)
class Edit:
    """One instruction with the photo before and after: uint8 `[H, W, 3]` both; `kind` is its key."""

    instruction: str
    source: UInt8Image
    target: UInt8Image
    kind: str


@dataclass(frozen=True)
class OrdinaryEdit:
    """One kind of edit.

    Attributes:
        kind: its key in `ORDINARY_EDITS`.
        group: "keep", "photometric", "spatial" (called with a photo) or "subject" (called with a scene).
        phrasings: ways to ask for it; `{name}` stands for a drawn word; `{noun}`, `{a_noun}` and `{place}`
            for what the scene holds.
        apply: maps the photo or scene, and the drawn words by name, to source and target.
        words: the words that are drawn, by name.
    """

    kind: str
    group: str
    phrasings: tuple[str, ...]
    apply: Callable[..., tuple[UInt8Image, UInt8Image]]
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __call__(self, subject: UInt8Image | Scene, rng: np.random.Generator) -> Edit:
        """Draw the words and a phrasing, and carry the edit out.

        Raises:
            TypeError: a photo was given where a scene is needed, or the reverse.
            ValueError: the photo is not uint8 `[H, W, 3]`, or is not square for a quarter turn.
        """
        if isinstance(subject, Scene) != (self.group == "subject"):
            raise TypeError(
                f"The edit {self.kind} needs a {'scene' if self.group == 'subject' else 'photo'}."
            )
        drawn = {name: options[rng.integers(len(options))] for name, options in self.words.items()}
        phrasing = self.phrasings[rng.integers(len(self.phrasings))]
        if isinstance(subject, Scene):
            seen = {"noun": subject.noun, "a_noun": with_article(subject.noun), "place": subject.place}
        else:
            check_photo(subject)
            seen = {}
        source, target = self.apply(subject, **drawn)
        return Edit(write_instruction(phrasing, drawn | seen), source, target, self.kind)


def write_instruction(phrasing: str, words: Mapping[str, str]) -> str:
    """Fill in `words`; an empty word leaves no double space behind."""
    return " ".join(phrasing.format(**words).split())


def with_article(noun: str) -> str:
    """The noun as one adds it: a cat, an owl, grapes."""
    if noun.endswith("s") and not noun.endswith(("ss", "us", "is")):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def photo_edit(
    kind: str, group: str, phrasings: str, change: Callable[..., UInt8Image], **words: tuple[str, ...]
) -> OrdinaryEdit:
    """An edit of a photo: `change` makes the target; `phrasings` are separated by " | "."""

    def apply(photo: UInt8Image, **drawn: str) -> tuple[UInt8Image, UInt8Image]:
        return photo, change(photo, **drawn)

    return OrdinaryEdit(kind, group, tuple(phrasings.split(" | ")), apply, words)


def scene_edit(
    kind: str, phrasings: str, change: Callable[..., UInt8Image], **words: tuple[str, ...]
) -> OrdinaryEdit:
    """An edit of a scene that shows its subject before: `change` makes the target."""

    def apply(scene: Scene, **drawn: str) -> tuple[UInt8Image, UInt8Image]:
        return scene.image, change(scene, **drawn)

    return OrdinaryEdit(kind, "subject", tuple(phrasings.split(" | ")), apply, words)


def add_subject(scene: Scene) -> tuple[UInt8Image, UInt8Image]:
    """The one edit that starts without the subject."""
    return scene.background, scene.image


KEEP = (
    photo_edit(
        "keep", "keep",
        "keep the photo unchanged | do not change anything | leave the photo as it is | keep it the same",
        lambda photo: photo.copy(),
    ),
)  # fmt: skip

PHOTOMETRIC = tuple(
    photo_edit(kind, "photometric", phrasings, change, **words)
    for kind, phrasings, change, words in (
        (
            "brighten",
            "brighten the photo {amount} | make it {amount} brighter | make the photo {amount} brighter"
            " | turn the brightness up {amount}",
            lambda photo, amount: pixels.scale_brightness(photo, pixels.by_amount(amount, 1.2, 1.45, 2.0)),
            {"amount": AMOUNTS},
        ),
        (
            "darken",
            "darken the photo {amount} | make it {amount} darker | make the photo {amount} darker"
            " | turn the brightness down {amount}",
            lambda photo, amount: pixels.scale_brightness(photo, pixels.by_amount(amount, 0.8, 0.6, 0.35)),
            {"amount": AMOUNTS},
        ),
        (
            "more-contrast",
            "increase the contrast {amount} | raise the contrast {amount} | add {amount} more contrast"
            " | make the photo {amount} more contrasty",
            lambda photo, amount: pixels.scale_contrast(photo, pixels.by_amount(amount, 1.2, 1.5, 2.2)),
            {"amount": AMOUNTS},
        ),
        (
            "less-contrast",
            "reduce the contrast {amount} | lower the contrast {amount} | use {amount} less contrast"
            " | make the photo {amount} less contrasty",
            lambda photo, amount: pixels.scale_contrast(photo, pixels.by_amount(amount, 0.8, 0.6, 0.35)),
            {"amount": AMOUNTS},
        ),
        (
            "more-saturation",
            "make the colours {amount} stronger | increase the saturation {amount}"
            " | make the photo {amount} more colourful | saturate the colours {amount}",
            lambda photo, amount: pixels.scale_saturation(photo, pixels.by_amount(amount, 1.3, 1.7, 2.5)),
            {"amount": AMOUNTS},
        ),
        (
            "less-saturation",
            "make the colours {amount} weaker | reduce the saturation {amount}"
            " | make the photo {amount} less colourful | mute the colours {amount}",
            lambda photo, amount: pixels.scale_saturation(photo, pixels.by_amount(amount, 0.7, 0.45, 0.2)),
            {"amount": AMOUNTS},
        ),
        (
            "greyscale",
            "make the photo black and white | convert it to greyscale | remove all colour"
            " | turn it into a black and white photo",
            pixels.make_grey,
            {},
        ),
        (
            "warm",
            "make the photo {amount} warmer | warm up the colours {amount} | give it {amount} warmer light",
            pixels.warm,
            {"amount": AMOUNTS},
        ),
        (
            "cool",
            "make the photo {amount} cooler | cool down the colours {amount} | give it {amount} cooler light",
            pixels.cool,
            {"amount": AMOUNTS},
        ),
        (
            "tint",
            "tint the photo {colour} | colour the whole photo {colour} | see it through {colour} glass"
            " | light the photo in {colour}",
            pixels.tint,
            {"colour": HUES},
        ),
        (
            "invert",
            "invert the colours | make a negative of the photo | turn it into a negative",
            lambda photo: 255 - photo,
            {},
        ),
        (
            "blur",
            "blur the photo {amount} | make the photo {amount} blurrier | soften it {amount}",
            pixels.blur,
            {"amount": AMOUNTS},
        ),
        (
            "sharpen",
            "sharpen the photo {amount} | make the photo {amount} sharper | make the edges {amount} crisper",
            pixels.sharpen,
            {"amount": AMOUNTS},
        ),
        (
            "fade",
            "fade the photo | make it look faded | wash out the photo | give it a faded look",
            pixels.fade,
            {},
        ),
        (
            "swap-red-blue",
            "swap red and blue | exchange the red and blue channels | turn red into blue and blue into red",
            lambda photo: np.ascontiguousarray(photo[..., ::-1]),
            {},
        ),
        (
            "vignette",
            "add a vignette | darken the corners | darken the edges of the photo",
            pixels.vignette,
            {},
        ),
    )
)

SPATIAL = tuple(
    photo_edit(kind, "spatial", phrasings, change, **words)
    for kind, phrasings, change, words in (
        (
            "flip-horizontal",
            "flip the photo horizontally | mirror the photo | mirror it sideways | flip it left to right",
            lambda photo: np.ascontiguousarray(photo[:, ::-1]),
            {},
        ),
        (
            "flip-vertical",
            "flip the photo vertically | flip it top to bottom | mirror it top to bottom",
            lambda photo: np.ascontiguousarray(photo[::-1]),
            {},
        ),
        (
            "rotate-half",
            "rotate the photo by 180 degrees | turn the photo upside down | rotate it half a turn",
            lambda photo: np.ascontiguousarray(photo[::-1, ::-1]),
            {},
        ),
        (
            "rotate-left",
            "rotate the photo to the left | rotate it 90 degrees counterclockwise | turn it left 90 degrees",
            lambda photo: pixels.quarter_turn(photo, 1),
            {},
        ),
        (
            "rotate-right",
            "rotate the photo to the right | rotate it 90 degrees clockwise | turn it right 90 degrees",
            lambda photo: pixels.quarter_turn(photo, -1),
            {},
        ),
        (
            "zoom-in",
            "zoom in {amount} | zoom into the middle {amount} | enlarge the middle of the photo {amount}"
            " | magnify the centre {amount}",
            pixels.zoom_in,
            {"amount": AMOUNTS},
        ),
        (
            "zoom-out",
            "zoom out on {colour} | shrink the photo on a {colour} background"
            " | make the photo half the size on {colour} | zoom out and fill the rest with {colour}",
            pixels.zoom_out,
            {"colour": FRAME_COLOURS},
        ),
        (
            "border",
            "add a {thickness} {colour} border | put a {thickness} {colour} frame around the photo"
            " | frame the photo with a {thickness} {colour} edge | give it a {thickness} {colour} border",
            pixels.border,
            {"thickness": ("thin", "thick"), "colour": FRAME_COLOURS},
        ),
        (
            "shift",
            "shift the photo to the {side} | move everything to the {side} | slide the photo {side}",
            pixels.shift,
            {"side": ("left", "right")},
        ),
        (
            "circle",
            "crop the photo to a circle on {colour} | cut out a circle on {colour}"
            " | show it in a circle with {colour} around it",
            pixels.circle,
            {"colour": ("black", "white")},
        ),
    )
)

SUBJECT = (
    OrdinaryEdit(
        "add-subject",
        "subject",
        ("add {a_noun} {place}", "put {a_noun} {place} of the photo", "place {a_noun} {place}"),
        add_subject,
    ),
    scene_edit(
        "remove-subject",
        "remove the {noun} | erase the {noun} | take the {noun} away | delete the {noun} from the photo",
        lambda scene: scene.background.copy(),
    ),
    scene_edit(
        "recolour-subject",
        "make the {noun} {colour} | paint the {noun} {colour} | change the colour of the {noun} to {colour}",
        pixels.recolour,
        colour=HUES,
    ),
    scene_edit(
        "blur-background",
        "blur the background | blur everything except the {noun} | put the background out of focus",
        lambda scene: pixels.on_background(scene, pixels.blur(scene.background, "a lot")),
    ),
    scene_edit(
        "grey-background",
        "make the background black and white | keep colour only on the {noun} | turn the background grey",
        lambda scene: pixels.on_background(scene, pixels.make_grey(scene.background)),
    ),
    scene_edit(
        "darken-background",
        "darken the background | make the background darker | put a spotlight on the {noun}",
        lambda scene: pixels.on_background(scene, pixels.scale_brightness(scene.background, 0.35)),
    ),
    scene_edit(
        "plain-background",
        "make the background plain {colour} | replace the background with {colour}"
        " | put the {noun} on plain {colour}",
        lambda scene, colour: pixels.on_background(scene, pixels.fill_like(scene.background, colour)),
        colour=("black", "white", *HUES),
    ),
    scene_edit(
        "isolate-subject",
        "keep only the {noun} | cut out the {noun} | remove everything except the {noun}",
        lambda scene: pixels.on_background(scene, pixels.fill_like(scene.background, "white")),
    ),
)

ORDINARY_EDITS: dict[str, OrdinaryEdit] = {
    edit.kind: edit for edit in (*KEEP, *PHOTOMETRIC, *SPATIAL, *SUBJECT)
}
