"""The pictures that a benchmark shows: people look before they read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collectionlora.adapters.roles import STUDENT
from collectionlora.effectbench.bench import GENERAL, Cases, Pictures
from collectionlora.effectbench.faces import faces_first
from collectionlora.effectbench.metrics import nearest_outcome
from collectionlora.effectbench.truths import TRUTH, Truths
from collectionlora.pictures.photos import Photo
from collectionlora.pictures.sheets import contact_sheet

PHOTOS_SHOWN, PHOTOS_IN_SHEET = 3, 2


@dataclass(frozen=True)
class Shown:
    """One judged photo under one effect.

    Attributes:
        index: its place among the effect's shown photos.
        right: right answers by what the page calls them; empty where none is known.
        made: what each method made.
    """

    effect: str
    index: int
    source: Photo
    right: dict[str, Photo]
    made: dict[str, Photo]


@dataclass(frozen=True)
class Result:
    """The content of metrics.json, the first pictures of every effect, and by effect its strength dial."""

    metrics: dict[str, Any]
    gallery: list[Shown]
    strips: dict[str, list[Photo]]


def show(cases: Cases, truths: Truths, pictures: Pictures) -> list[Shown]:
    """Some photos of every effect, faces first; methods that copy the source or the truth are left out."""
    methods = {name: made for name, made in pictures.items() if name not in ("source", "truth")}
    chosen = faces_first(cases.photos, PHOTOS_SHOWN)
    shown = []
    for effect in (name for name in next(iter(pictures.values())) if name != GENERAL):
        for place, i in enumerate(chosen):
            made = {name: of_effect[effect][i] for name, of_effect in methods.items()}
            shown.append(Shown(effect, place, cases.photos[i], find_right(truths, effect, i, made), made))
    return shown


def find_right(truths: Truths, effect: str, index: int, made: Mapping[str, Photo]) -> dict[str, Photo]:
    """Right answers to a photo: the only one, or of several a drawn one and the student's nearest.

    Where there is no student, it is the nearest one to what the last method made.
    """
    if not truths.known(effect):
        return {}
    outcomes = truths.outcomes_of(effect, index)
    if len(outcomes) == 1:
        return {TRUTH: outcomes[0]}
    drawn = {f"a random {TRUTH}": truths.draw_one(effect, index)}
    if not made:
        return drawn
    name = STUDENT if STUDENT in made else list(made)[-1]
    return drawn | {f"the {TRUTH} nearest to {name}": outcomes[nearest_outcome(made[name], outcomes)[0]]}


def draw_sheet(gallery: Sequence[Shown]) -> Photo:
    """Source, a truth and each method, two photos of every effect.

    Of several truths it is the nearest one; the source stands again where none is known.
    """
    rows = [
        (one.effect, [one.source, [one.source, *one.right.values()][-1], *one.made.values()])
        for one in gallery
        if one.index < PHOTOS_IN_SHEET
    ]
    return contact_sheet(rows, ["source", TRUTH, *gallery[0].made])
