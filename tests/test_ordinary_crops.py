"""Crops of photographs, and scenes with a pasted subject."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from skimage import data

from collectionlora.effects.crops import (
    PLACES,
    Cutout,
    PhotoPool,
    compose_scene,
    load_cutouts,
    load_photographs,
)


@pytest.fixture(scope="module")
def pool() -> PhotoPool:
    return PhotoPool([data.astronaut(), data.chelsea(), data.coffee()])


@pytest.fixture(scope="module")
def cutout() -> Cutout:
    """A red disc with a soft edge."""
    down, across = np.mgrid[-1:1:60j, -1:1:60j]
    rgba = np.full((60, 60, 4), (200, 40, 30, 255), np.uint8)
    rgba[..., 3] = np.rint(255 * np.clip(8 * (1 - np.hypot(down, across)), 0, 1))
    return Cutout("disc", rgba)


def test_crops_are_parts_of_the_photographs() -> None:
    ramp = np.zeros((300, 400, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 300)[:, None]
    ramp[..., 1] = np.linspace(0, 255, 400)
    pool = PhotoPool([ramp])
    rng = np.random.default_rng(0)
    mirrored, spans = 0, []
    for _ in range(100):
        crop = pool.crop(rng, (40, 60)).astype(int)
        assert (np.diff(crop[:, 30, 0]) >= 0).all(), "a crop is never upside down"
        mirrored += crop[20, 0, 1] > crop[20, -1, 1]
        spans.append((np.ptp(crop[..., 0]) / 255 * 300, np.ptp(crop[..., 1]) / 255 * 400))
    assert 30 < mirrored < 70
    heights, widths = np.array(spans).T
    assert np.allclose(widths / heights, 1.5, atol=0.08), "a crop keeps its aspect"
    assert heights.min() < 110
    assert heights.max() > 220


def test_small_photographs_are_enlarged_and_bad_ones_refused() -> None:
    assert PhotoPool([data.chelsea()[:20, :30]]).crop(np.random.default_rng(0)).shape == (64, 64, 3)
    with pytest.raises(ValueError, match="at least one"):
        PhotoPool([])
    with pytest.raises(ValueError, match="uint8"):
        PhotoPool([data.camera()])


def test_loading(tmp_path: Path, cutout: Cutout) -> None:
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.jpg")
    assert len(load_photographs(tmp_path)) == 1
    (tmp_path / "shapes").mkdir()
    text = PngInfo()
    text.add_text("noun", "disc")
    Image.fromarray(cutout.rgba).save(tmp_path / "shapes" / "a.png", pnginfo=text)
    (loaded,) = load_cutouts(tmp_path)
    assert loaded.noun == "disc"
    assert np.array_equal(loaded.rgba, cutout.rgba)
    Image.fromarray(cutout.rgba).save(tmp_path / "shapes" / "b.png")
    with pytest.raises(ValueError, match=r"b\.png has no text `noun`"):
        load_cutouts(tmp_path)
    for load in (load_photographs, load_cutouts):
        with pytest.raises(ValueError, match="There are no"):
            load(tmp_path / "nowhere")


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_scene_differs_from_its_background_only_under_the_mask(
    size: tuple[int, int], pool: PhotoPool, cutout: Cutout
) -> None:
    rng = np.random.default_rng(4)
    background = pool.crop(rng, size)
    scene = compose_scene(background, [cutout], rng)
    assert scene.noun == "disc"
    assert np.array_equal(scene.background, background)
    assert scene.mask.shape == size
    assert scene.mask.min() == 0
    assert scene.mask.max() == 1
    clear, covered = scene.mask == 0, scene.mask == 1
    assert np.array_equal(scene.image[clear], scene.background[clear])
    assert np.array_equal(scene.image[covered], scene.subject[covered])
    assert 0.02 < scene.mask.mean() < 0.6


def test_place_says_where_the_subject_is(pool: PhotoPool, cutout: Cutout) -> None:
    rng = np.random.default_rng(0)
    centres: dict[str, list[float]] = {place: [] for place in PLACES}
    for _ in range(90):
        scene = compose_scene(pool.crop(rng), [cutout], rng)
        across = (scene.mask.sum(axis=0) @ np.arange(64)) / scene.mask.sum() / 63
        centres[scene.place].append(across)
    assert max(centres["on the left"]) < 0.4 < min(centres["in the middle"])
    assert max(centres["in the middle"]) < 0.6 < min(centres["on the right"])


def test_scene_is_a_function_of_its_generator_and_needs_cutouts(pool: PhotoPool, cutout: Cutout) -> None:
    background = pool.crop(np.random.default_rng(0))
    first, again, other = (
        compose_scene(background, [cutout], np.random.default_rng(seed)).image for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    with pytest.raises(ValueError, match="at least one cut-out"):
        compose_scene(background, [], np.random.default_rng(0))
