"""The pictures that a benchmark shows: people look before they read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from collectionlora.effectbench.bench import GENERAL, Cases, Pictures
from collectionlora.effectbench.truths import Truths
from collectionlora.pictures.photos import Photo
from collectionlora.pictures.sheets import contact_sheet

PHOTOS_SHOWN, PHOTOS_IN_SHEET = 3, 2


@dataclass(frozen=True)
class Shown:
    """One judged photo under one effect: a right answer if one is known, and what each method made."""

    effect: str
    index: int
    source: Photo
    truth: Photo | None
    made: dict[str, Photo]


@dataclass(frozen=True)
class Result:
    """The content of metrics.json, the first pictures of every effect, and by effect its strength dial."""

    metrics: dict[str, Any]
    gallery: list[Shown]
    strips: dict[str, list[Photo]]


def show(cases: Cases, truths: Truths, pictures: Pictures) -> list[Shown]:
    """The first photos of every effect; methods that copy the source or the truth are left out."""
    methods = {name: made for name, made in pictures.items() if name not in ("source", "truth")}
    shown = []
    for effect in (name for name in next(iter(pictures.values())) if name != GENERAL):
        drawn = truths.draw(effect) if truths.known(effect) else None
        for i, photo in enumerate(cases.photos[:PHOTOS_SHOWN]):
            truth = drawn[i] if drawn else None
            made = {name: of_effect[effect][i] for name, of_effect in methods.items()}
            shown.append(Shown(effect, i, photo, truth, made))
    return shown


def draw_sheet(gallery: Sequence[Shown]) -> Photo:
    """Source, a truth (the source again where none is known) and each method, two photos of every effect."""
    rows = [
        (one.effect, [one.source, one.source if one.truth is None else one.truth, *one.made.values()])
        for one in gallery
        if one.index < PHOTOS_IN_SHEET
    ]
    return contact_sheet(rows, ["source", "truth", *gallery[0].made])
