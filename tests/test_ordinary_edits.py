"""Ordinary edits: each truth against an independent expectation, on real photographs."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from helpers.every import every
from PIL import Image
from skimage import data

from collectionlora.effects.crops import PLACES, compose_scene
from collectionlora.effects.ordinary import (
    ORDINARY_EDITS,
    Cutout,
    Edit,
    PhotoPool,
    Scene,
    draw_edit,
    general_instructions,
)
from collectionlora.effects.ordinary_pixels import COLOURS

PHOTO_KINDS = [kind for kind, edit in ORDINARY_EDITS.items() if edit.group != "subject"]
SUBJECT_KINDS = [kind for kind, edit in ORDINARY_EDITS.items() if edit.group == "subject"]
SQUARE_ONLY = {"rotate-left", "rotate-right"}
SIZES = [(64, 64), (48, 80)]


@pytest.fixture(scope="module")
def pool() -> PhotoPool:
    return PhotoPool([data.astronaut(), data.chelsea(), data.coffee()])


@pytest.fixture(scope="module")
def cutouts() -> list[Cutout]:
    """A red disc and a green box, both with soft edges."""
    down, across = np.mgrid[-1:1:60j, -1:1:60j]
    disc = np.clip(8 * (1 - np.hypot(down, across)), 0, 1)
    made = []
    for noun, colour, alpha in (("disc", (200, 40, 30), disc), ("apple", (30, 160, 50), disc[15:45])):
        rgba = np.empty((*alpha.shape, 4), np.uint8)
        rgba[..., :3] = colour
        rgba[..., 3] = np.rint(255 * alpha)
        made.append(Cutout(noun, rgba))
    return made


@pytest.fixture(params=SIZES, ids=["square", "wide"])
def photo(request: pytest.FixtureRequest, pool: PhotoPool) -> np.ndarray:
    return pool.crop(np.random.default_rng(3), request.param)


@pytest.fixture(params=SIZES, ids=["square", "wide"])
def scene(request: pytest.FixtureRequest, pool: PhotoPool, cutouts: list[Cutout]) -> Scene:
    rng = np.random.default_rng(4)
    return compose_scene(pool.crop(rng, request.param), cutouts, rng)


def variants(kind: str, subject: np.ndarray | Scene) -> list[Edit]:
    """Enough draws to meet every drawn word of the kind."""
    return [ORDINARY_EDITS[kind](subject, np.random.default_rng(seed)) for seed in range(60)]


def variant(kind: str, subject: np.ndarray | Scene, *words: str) -> Edit:
    """The first draw whose instruction holds all `words`."""
    return next(edit for edit in variants(kind, subject) if all(word in edit.instruction for word in words))


def amounts(kind: str, photo: np.ndarray) -> tuple[Edit, Edit, Edit]:
    """A little, the middle, and a lot."""
    edits = variants(kind, photo)
    little = next(edit for edit in edits if "a little" in edit.instruction)
    lot = next(edit for edit in edits if "a lot" in edit.instruction)
    middle = next(edit for edit in edits if not {"little", "lot"} & set(edit.instruction.split()))
    return little, middle, lot


def saturation(photo: np.ndarray) -> float:
    return float((photo.max(axis=2).astype(float) - photo.min(axis=2)).mean())


def roughness(photo: np.ndarray) -> float:
    return float(np.abs(np.diff(photo.astype(float), axis=1)).mean())


# --- every kind ---


@every(PHOTO_KINDS)
def test_photo_edit_keeps_source_shape_and_type(kind: str, photo: np.ndarray) -> None:
    if kind in SQUARE_ONLY and photo.shape[0] != photo.shape[1]:
        with pytest.raises(ValueError, match="square"):
            ORDINARY_EDITS[kind](photo, np.random.default_rng(0))
        return
    before = photo.copy()
    edit = ORDINARY_EDITS[kind](photo, np.random.default_rng(0))
    assert edit.kind == kind
    assert np.array_equal(edit.source, before)
    assert np.array_equal(photo, before), "the edit wrote into its input"
    assert edit.target.shape == photo.shape
    assert edit.target.dtype == np.uint8
    assert np.array_equal(edit.target, photo) == (kind == "keep")


@every(list(ORDINARY_EDITS))
def test_same_instruction_same_truth(kind: str, pool: PhotoPool, cutouts: list[Cutout]) -> None:
    rng = np.random.default_rng(1)
    photo = pool.crop(rng)
    subject = compose_scene(photo, cutouts, rng) if kind in SUBJECT_KINDS else photo
    truths: dict[str, np.ndarray] = {}
    for edit in variants(kind, subject):
        assert np.array_equal(truths.setdefault(edit.instruction, edit.target), edit.target)
    assert len({" ".join(phrasing.split()) for phrasing in ORDINARY_EDITS[kind].phrasings}) >= 3
    assert len(truths) >= 3


def test_no_two_kinds_share_an_instruction() -> None:
    instructions = general_instructions()
    assert len(instructions) == len(set(instructions))
    total = 0
    for edit in ORDINARY_EDITS.values():
        if edit.group != "subject":
            total += len(edit.phrasings) * int(np.prod([len(words) for words in edit.words.values()]))
    assert len(instructions) == total
    assert "brighten the photo" in instructions
    assert "brighten the photo a lot" in instructions
    assert not any(re.search(r"\ba [aeiou]", text) for text in instructions)
    assert not any("  " in text or "{" in text or text != text.strip() for text in instructions)


@pytest.mark.parametrize("size", SIZES)
def test_draw_edit_is_a_function_of_its_generator(
    size: tuple[int, int], pool: PhotoPool, cutouts: list[Cutout]
) -> None:
    kinds = set()
    for seed in range(300):
        first = draw_edit(np.random.default_rng(seed), pool, cutouts, size)
        again = draw_edit(np.random.default_rng(seed), pool, cutouts, size)
        assert first.instruction == again.instruction
        assert np.array_equal(first.source, again.source)
        assert np.array_equal(first.target, again.target)
        assert first.source.shape == first.target.shape == (*size, 3)
        kinds.add(first.kind)
    assert len(kinds) > 28
    assert (size == (64, 64)) == bool(kinds & SQUARE_ONLY)


def test_draw_edit_limits(pool: PhotoPool, cutouts: list[Cutout]) -> None:
    rng = np.random.default_rng(0)
    assert {draw_edit(rng, pool, cutouts, kinds=["blur", "tint"]).kind for _ in range(30)} == {"blur", "tint"}
    assert not any(draw_edit(rng, pool, []).kind in SUBJECT_KINDS for _ in range(60))
    with pytest.raises(ValueError, match="'brigten'"):
        draw_edit(rng, pool, cutouts, kinds=["brigten"])
    with pytest.raises(ValueError, match="cut-outs"):
        draw_edit(rng, pool, [], kinds=["remove-subject"])


def test_wrong_input_is_named(scene: Scene) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(TypeError, match="needs a photo"):
        ORDINARY_EDITS["blur"](scene, rng)
    with pytest.raises(TypeError, match="needs a scene"):
        ORDINARY_EDITS["remove-subject"](scene.image, rng)
    with pytest.raises(ValueError, match="uint8"):
        ORDINARY_EDITS["blur"](scene.image / 255, rng)


# --- photometric ---


def warmth(photo: np.ndarray) -> float:
    return float(photo[..., 0].mean() - photo[..., 2].mean())


# What an amount changes, and in which direction.
AMOUNTS: dict[str, tuple[Callable[[np.ndarray], float], int]] = {
    "brighten": (np.mean, 1),
    "darken": (np.mean, -1),
    "more-contrast": (np.std, 1),
    "less-contrast": (np.std, -1),
    "more-saturation": (saturation, 1),
    "less-saturation": (saturation, -1),
    "blur": (roughness, -1),
    "sharpen": (roughness, 1),
    "warm": (warmth, 1),
    "cool": (warmth, -1),
}


@every(AMOUNTS)
def test_amounts_are_ordered(kind: str, photo: np.ndarray) -> None:
    measure, sign = AMOUNTS[kind]
    little, middle, lot = (sign * measure(edit.target) for edit in amounts(kind, photo))
    assert sign * measure(photo) < little < middle < lot


def test_greyscale_has_equal_channels_and_keeps_brightness(photo: np.ndarray) -> None:
    grey = variant("greyscale", photo).target
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert np.array_equal(grey[..., 0], grey[..., 2])
    expected = np.asarray(Image.fromarray(photo).convert("L")).astype(int)
    assert np.abs(grey[..., 0] - expected).max() <= 1


@every(["red", "green", "blue"])
def test_tint_favours_its_colour(colour: str, photo: np.ndarray) -> None:
    grey = np.full_like(photo, 128)
    tinted = variant("tint", grey, colour).target[0, 0]
    assert tinted.argmax() == ("red", "green", "blue").index(colour)


def test_invert_and_swap_are_their_own_inverse(photo: np.ndarray) -> None:
    for kind in ("invert", "swap-red-blue"):
        assert np.array_equal(variant(kind, variant(kind, photo).target).target, photo)
    assert np.array_equal(variant("invert", photo).target.astype(int) + photo, np.full(photo.shape, 255))
    swapped = variant("swap-red-blue", photo).target
    assert np.array_equal(swapped[..., 0], photo[..., 2])
    assert np.array_equal(swapped[..., 1], photo[..., 1])


def test_fade_lifts_black_and_vignette_darkens_corners(photo: np.ndarray) -> None:
    assert variant("fade", photo).target.min() >= 85
    white = np.full_like(photo, 255)
    vignette = variant("vignette", white).target
    height, width = photo.shape[:2]
    assert (vignette[height // 2, width // 2] == 255).all()
    assert (vignette[[0, 0, -1, -1], [0, -1, 0, -1]] < 60).all()


# --- spatial ---


TURNS = {
    "flip-horizontal": Image.Transpose.FLIP_LEFT_RIGHT,
    "flip-vertical": Image.Transpose.FLIP_TOP_BOTTOM,
    "rotate-half": Image.Transpose.ROTATE_180,
    "rotate-left": Image.Transpose.ROTATE_90,
    "rotate-right": Image.Transpose.ROTATE_270,
}


@every(TURNS)
def test_flips_and_turns_match_pillow(kind: str, photo: np.ndarray) -> None:
    if kind in SQUARE_ONLY:
        photo = photo[:, : photo.shape[0]]
    expected = np.asarray(Image.fromarray(photo).transpose(TURNS[kind]))
    assert np.array_equal(variant(kind, photo).target, expected)


@every(["black", "white", "red", "green", "blue", "yellow"])
def test_border_has_its_colour_and_keeps_the_middle(colour: str, photo: np.ndarray) -> None:
    sizes = []
    for thickness in ("thin", "thick"):
        edit = variant("border", photo, thickness, colour)
        framed = (edit.target == COLOURS[colour]).all(axis=2)
        assert framed[0].all()
        assert framed[-1].all()
        assert framed[:, 0].all()
        assert framed[:, -1].all()
        size = int(np.argmin(framed.all(axis=1)))
        sizes.append(size)
        assert np.array_equal(edit.target[size:-size, size:-size], photo[size:-size, size:-size])
    assert sizes[0] < sizes[1]


def test_shift_moves_towards_its_side(photo: np.ndarray) -> None:
    step = photo.shape[1] // 4
    left = variant("shift", photo, "left").target
    right = variant("shift", photo, "right").target
    assert np.array_equal(left[:, 0], photo[:, step])
    assert np.array_equal(right[:, -1], photo[:, -step - 1])
    assert (left[:, -step:] == 0).all()
    assert (right[:, :step] == 0).all()


def test_zooms_keep_the_middle(photo: np.ndarray) -> None:
    height, width = photo.shape[:2]
    inside = (slice(height // 4, -(height // 4)), slice(width // 4, -(width // 4)))
    out = variant("zoom-out", photo, "yellow").target
    assert (out[0] == COLOURS["yellow"]).all()
    assert np.abs(out[inside].mean(axis=(0, 1)) - photo.mean(axis=(0, 1))).max() < 3
    little, middle, lot = (edit.target for edit in amounts("zoom-in", photo))
    assert roughness(photo) > roughness(little) > roughness(middle) > roughness(lot)
    back = np.asarray(
        Image.fromarray(lot).resize((round(width / 2.5), round(height / 2.5)), Image.Resampling.BOX)
    )
    top, left = (height - back.shape[0]) // 2, (width - back.shape[1]) // 2
    kept = photo[top : top + back.shape[0], left : left + back.shape[1]]
    assert np.abs(back.astype(int) - kept).mean() < 12


def test_circle_keeps_the_centre_and_colours_the_corners(photo: np.ndarray) -> None:
    height, width = photo.shape[:2]
    edit = variant("circle", photo, "white")
    assert np.array_equal(edit.target[height // 2, width // 2], photo[height // 2, width // 2])
    assert np.array_equal(edit.target[0, width // 2], photo[0, width // 2])
    assert (edit.target[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()


# --- subject ---


def test_subject_instructions_name_the_noun(scene: Scene) -> None:
    for kind in ("add-subject", "remove-subject", "recolour-subject", "isolate-subject"):
        assert all(scene.noun in edit.instruction for edit in variants(kind, scene))
    assert all(scene.place in edit.instruction for edit in variants("add-subject", scene))
    apple = Scene(scene.image, scene.background, scene.subject, scene.mask, "apple", PLACES[0])
    assert all("an apple on the left" in edit.instruction for edit in variants("add-subject", apple))
    grapes = Scene(scene.image, scene.background, scene.subject, scene.mask, "grapes", PLACES[0])
    assert not any("a grapes" in edit.instruction for edit in variants("add-subject", grapes))


def test_add_and_remove_are_opposites(scene: Scene) -> None:
    add, remove = variant("add-subject", scene), variant("remove-subject", scene)
    assert np.array_equal(remove.source, scene.image)
    assert np.array_equal(remove.target, scene.background)
    assert np.array_equal(add.source, scene.background)
    assert np.array_equal(add.target, scene.image)


@every(["red", "green", "blue"])
def test_recolour_changes_the_subject_alone(colour: str, scene: Scene) -> None:
    target = variant("recolour-subject", scene, colour).target
    assert np.array_equal(target[scene.mask == 0], scene.background[scene.mask == 0])
    channel = ("red", "green", "blue").index(colour)
    assert (target[scene.mask == 1].argmax(axis=1) == channel).all()


@every(["blur-background", "grey-background", "darken-background", "plain-background", "isolate-subject"])
def test_background_edits_leave_the_subject(kind: str, scene: Scene) -> None:
    edit = variant(kind, scene)
    covered, clear = scene.mask == 1, scene.mask == 0
    unlike = Scene(
        255 - scene.image, scene.background, 255 - scene.subject, scene.mask, scene.noun, scene.place
    )
    assert np.array_equal(variant(kind, unlike).target[clear], edit.target[clear]), "the subject bleeds out"
    assert np.array_equal(edit.target[covered], scene.image[covered])
    assert not np.array_equal(edit.target[clear], scene.image[clear])


def test_background_edits_change_the_background_as_said(scene: Scene) -> None:
    clear = scene.mask == 0
    assert saturation(variant("grey-background", scene).target[clear][None]) == 0
    assert variant("darken-background", scene).target[clear].mean() < 0.5 * scene.image[clear].mean()
    assert (variant("isolate-subject", scene).target[clear] == 255).all()
    for colour in ("black", "red", "pink"):
        assert (variant("plain-background", scene, colour).target[clear] == COLOURS[colour]).all()
