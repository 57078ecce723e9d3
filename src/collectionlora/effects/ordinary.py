"""Ordinary instruction edits with a known truth: the general abilities of the nano base.

An edit is a pure function of a photo, or of a scene (a photo with one subject, see `crops.py`), and of a
random generator. `draw_edit` draws everything of one training example; the kinds are in `ordinary_kinds.py`.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .crops import Cutout, PhotoPool, Scene, compose_scene, load_cutouts, load_photographs
from .ordinary_kinds import ORDINARY_EDITS, Edit, OrdinaryEdit, write_instruction

__all__ = [
    "ORDINARY_EDITS",
    "Cutout",
    "Edit",
    "OrdinaryEdit",
    "PhotoPool",
    "Scene",
    "compose_scene",
    "draw_edit",
    "general_instructions",
    "load_cutouts",
    "load_photographs",
]

# How often each group is drawn; its kinds share this equally. Spatial edits take longest to learn.
GROUP_SHARES = {"keep": 0.04, "photometric": 0.32, "spatial": 0.42, "subject": 0.22}
SUBJECT_IN_PHOTO_RATIO = 1 / 3  # of the photos of the other groups also show a pasted subject


def draw_edit(
    rng: np.random.Generator,
    photo_source: PhotoPool,
    cutouts: Sequence[Cutout],
    size: tuple[int, int] = (64, 64),
    kinds: Sequence[str] | None = None,
) -> Edit:
    """Draw a kind by `GROUP_SHARES`, a crop, and everything else of one edit.

    Args:
        rng: the source of every draw.
        photo_source: where crops come from.
        cutouts: subjects; without any, subject edits are not drawn and no photo shows a pasted subject.
        size: height and width in pixels; quarter turns are drawn for squares only.
        kinds: draw only from these keys of `ORDINARY_EDITS`; the shares are rescaled.

    Raises:
        ValueError: an unknown kind, or nothing is left to draw from.
    """
    allowed = list_kinds(None if kinds is None else tuple(kinds), size[0] == size[1], bool(cutouts))
    cumulative = np.cumsum([share for _, share in allowed])
    drawn = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    edit = ORDINARY_EDITS[allowed[drawn][0]]
    photo = photo_source.crop(rng, size)
    if edit.group == "subject":
        return edit(compose_scene(photo, cutouts, rng), rng)
    if cutouts and rng.random() < SUBJECT_IN_PHOTO_RATIO:
        photo = compose_scene(photo, cutouts, rng).image
    return edit(photo, rng)


@functools.cache
def list_kinds(
    kinds: tuple[str, ...] | None, square: bool, with_cutouts: bool
) -> tuple[tuple[str, float], ...]:
    """The kinds that can be drawn, each with its share (not normalised)."""
    for kind in kinds or ():
        if kind not in ORDINARY_EDITS:
            raise ValueError(f"There is no ordinary edit {kind!r}; there are {', '.join(ORDINARY_EDITS)}.")
    edits = [ORDINARY_EDITS[kind] for kind in (ORDINARY_EDITS if kinds is None else kinds)]
    group_sizes = Counter(edit.group for edit in ORDINARY_EDITS.values())
    allowed = tuple(
        (edit.kind, GROUP_SHARES[edit.group] / group_sizes[edit.group])
        for edit in edits
        if (with_cutouts or edit.group != "subject")
        and (square or edit.kind not in ("rotate-left", "rotate-right"))
    )
    if not allowed:
        raise ValueError("No edit can be drawn: subject edits need cut-outs, and quarter turns a square.")
    return allowed


def general_instructions() -> list[str]:
    """Every distinct instruction of the photo edits (keep, photometric, spatial), in the table's order."""
    instructions = []
    for edit in ORDINARY_EDITS.values():
        if edit.group != "subject":
            for phrasing in edit.phrasings:
                for values in itertools.product(*edit.words.values()):
                    words = dict(zip(edit.words, values, strict=True))
                    instructions.append(write_instruction(phrasing, words))
    return list(dict.fromkeys(instructions))
