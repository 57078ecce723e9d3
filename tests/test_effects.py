"""The photo effects: their contract, and that their pictures are worth learning."""

import re
from collections import Counter
from functools import cache
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
from helpers.every import every
from PIL import Image

from collectionlora.effects import ALL_EFFECTS, EFFECTS, PhotoEffect

UInt8Image = npt.NDArray[np.uint8]

SIZES = ((1, 1), (5, 7), (64, 64), (48, 80))
DETERMINISTIC = [name for name, effect in EFFECTS.items() if effect.num_outcomes == 1]
CONTINUOUS = [name for name, effect in EFFECTS.items() if effect.num_outcomes is None]
FINITE = [name for name in EFFECTS if name not in (*DETERMINISTIC, *CONTINUOUS)]


def psnr(first: UInt8Image, second: UInt8Image) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    error = np.mean((first.astype(np.float64) - second) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@cache
def photograph(name: str, height: int = 64, width: int = 64) -> UInt8Image:
    image = Image.fromarray(getattr(skimage.data, name)())
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


@cache
def photographs() -> tuple[UInt8Image, ...]:
    return tuple(photograph(name) for name in ("astronaut", "chelsea", "coffee"))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_there_are_enough_effects_of_every_kind() -> None:
    assert len(EFFECTS) >= 56
    assert len(FINITE) >= 12
    assert len(CONTINUOUS) >= 6
    assert len(FINITE) + len(CONTINUOUS) >= 18


@every(EFFECTS)
def test_names_and_descriptions(name: str) -> None:
    effect = EFFECTS[name]
    assert effect.name == name
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
    assert effect.description
    assert "\n" not in effect.description
    assert effect.num_outcomes is None or 1 <= effect.num_outcomes <= 6


def test_descriptions_are_unique() -> None:
    assert len({effect.description for effect in EFFECTS.values()}) == len(EFFECTS)


def test_teacher_prompts_are_shared() -> None:
    counts = Counter(effect.teacher_prompt for effect in EFFECTS.values())
    assert len(counts) <= len(EFFECTS) / 3
    assert min(counts.values()) >= 3
    assert max(counts.values()) <= 7


@every(list(product(EFFECTS, SIZES)))
def test_keeps_shape_and_input_and_repeats_with_the_seed(case: tuple[str, tuple[int, int]]) -> None:
    name, size = case
    image = photograph("astronaut", *size).copy()
    before = image.copy()
    edited = EFFECTS[name](image, generator(3))
    assert edited.shape == image.shape
    assert edited.dtype == np.uint8
    assert not np.shares_memory(edited, image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(EFFECTS[name](image, generator(3)), edited)


@every(EFFECTS)
def test_memory_layout_does_not_matter(name: str) -> None:
    view = photograph("coffee", 64, 128)[::-1, ::2]
    edited = EFFECTS[name](view, generator())
    np.testing.assert_array_equal(edited, EFFECTS[name](np.ascontiguousarray(view), generator()))


@every(EFFECTS)
def test_extreme_tones_and_shapes_are_fine(name: str) -> None:
    with np.errstate(all="raise"):
        for image in (
            np.zeros((16, 16, 3), np.uint8),
            np.full((16, 16, 3), 255, np.uint8),
            photograph("astronaut", 2, 90),
            photograph("astronaut", 90, 2),
        ):
            assert EFFECTS[name](image, generator()).shape == image.shape


@every(EFFECTS)
def test_changes_photographs_clearly(name: str) -> None:
    effect = EFFECTS[name]
    assert np.mean([psnr(effect(photo, generator()), photo) for photo in photographs()]) < 20


@every(DETERMINISTIC)
def test_deterministic_effects_ignore_the_generator(name: str) -> None:
    effect, photo, rng = EFFECTS[name], photograph("coffee"), generator()
    edited = effect(photo)
    np.testing.assert_array_equal(effect(photo, rng), edited)
    assert rng.bit_generator.state == generator().bit_generator.state
    (outcome,) = effect.outcomes(photo)
    np.testing.assert_array_equal(outcome, edited)


@every([*FINITE, *CONTINUOUS])
def test_random_effects_need_a_generator(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        EFFECTS[name](photograph("coffee"))


@every(FINITE)
def test_finite_effects_reach_exactly_their_outcomes(name: str) -> None:
    effect, photo = EFFECTS[name], photograph("astronaut", 32, 32)
    outcomes = {outcome.tobytes() for outcome in effect.outcomes(photo)}
    assert len(outcomes) == effect.num_outcomes
    assert {effect(photo, generator(seed)).tobytes() for seed in range(60)} == outcomes


@every(FINITE)
def test_outcomes_differ_clearly_from_each_other_and_from_the_source(name: str) -> None:
    lists = [EFFECTS[name].outcomes(photo) for photo in photographs()]
    count = len(lists[0])
    for first, second in combinations(range(count), 2):
        assert np.mean([psnr(outcomes[first], outcomes[second]) for outcomes in lists]) < 20
    for mode in range(count):
        pairs = zip(photographs(), lists, strict=True)
        assert np.mean([psnr(outcomes[mode], photo) for photo, outcomes in pairs]) < 20


@every(FINITE)
def test_each_outcome_is_an_effect_of_its_own(name: str) -> None:
    effect, photo = EFFECTS[name], photograph("coffee")
    for number, outcome in enumerate(effect.outcomes(photo), 1):
        variant = ALL_EFFECTS[f"{name}-{number}"]
        assert variant.num_outcomes == 1
        np.testing.assert_array_equal(variant(photo), outcome)
    assert f"{name}-{number + 1}" not in ALL_EFFECTS


def test_only_several_outcomes_are_effects_of_their_own() -> None:
    assert all(EFFECTS[name].variants() == [] for name in [*DETERMINISTIC, *CONTINUOUS])
    assert len({effect.description for effect in ALL_EFFECTS.values()}) == len(ALL_EFFECTS)


@every(FINITE)
def test_the_average_of_the_outcomes_is_not_an_outcome(name: str) -> None:
    outcomes = EFFECTS[name].outcomes(photograph("astronaut"))
    average = np.mean(outcomes, axis=0).astype(np.uint8)
    assert max(psnr(average, outcome) for outcome in outcomes) < 22


@every(CONTINUOUS)
def test_continuous_effects_differ_between_seeds_and_list_no_outcomes(name: str) -> None:
    effect, photo = EFFECTS[name], photograph("coffee")
    samples = [effect(photo, generator(seed)) for seed in range(4)]
    assert all(psnr(first, second) < 20 for first, second in combinations(samples, 2))
    with pytest.raises(ValueError, match="sample"):
        effect.outcomes(photo)


def test_no_two_effects_make_the_same_picture() -> None:
    photo = photograph("astronaut")
    pictures = {
        (name, mode): picture
        for name in [*DETERMINISTIC, *FINITE]
        for mode, picture in enumerate(EFFECTS[name].outcomes(photo))
    }
    alike = [pair for pair in combinations(pictures, 2) if psnr(pictures[pair[0]], pictures[pair[1]]) >= 22]
    assert alike == []


@every(DETERMINISTIC)
def test_looks_alike_at_twice_the_resolution(name: str) -> None:
    small = EFFECTS[name](photograph("astronaut"))
    large = Image.fromarray(EFFECTS[name](photograph("astronaut", 128, 128)))
    assert psnr(small, np.asarray(large.resize((64, 64), Image.Resampling.BOX))) > 15


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["float", "grey", "alpha", "empty"],
)
def test_wrong_images_are_refused(image: npt.NDArray[np.generic]) -> None:
    effect = EFFECTS["pencil-sketch"]
    with pytest.raises(ValueError, match=r"uint8 RGB image \[H, W, 3\]"):
        effect(image)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"uint8 RGB image \[H, W, 3\]"):
        effect.outcomes(image)  # type: ignore[arg-type]


def test_outcomes_come_in_the_order_of_the_modes() -> None:
    photo = photograph("coffee", 9, 9)
    effect = PhotoEffect("shade", "One of two shades", "shade", 2, lambda image, mode: image * 0 + mode)
    black, white = effect.outcomes(photo)
    assert black.max() == 0
    assert white.min() == 255
