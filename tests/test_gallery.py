"""The photos that a report shows, and the right answers beside them."""

from dataclasses import replace

import numpy as np
from helpers.bench_collection import build, photo

from collectionlora.config import DataSettings
from collectionlora.effectbench.bench import Cases
from collectionlora.effectbench.faces import faces_first, has_face
from collectionlora.effectbench.gallery import draw_sheet, show
from collectionlora.effectbench.truths import Truths
from collectionlora.effects import ALL_EFFECTS
from collectionlora.pictures.photographs import load_photograph
from collectionlora.pictures.photos import resize
from collectionlora.pictures.sizes import WorkingSizes

SIDE = 64
FACE = resize(load_photograph("astronaut")[0:260, 90:350], (SIDE, SIDE))
NO_FACES = [
    resize(load_photograph(name)[:280, :280], (SIDE, SIDE)) for name in ("chelsea", "coffee", "rocket")
]


def test_photos_with_a_face_come_first_and_one_place_is_left_for_another():
    assert has_face(FACE)
    assert not any(map(has_face, NO_FACES))
    cat, coffee, rocket = NO_FACES
    assert faces_first([cat, coffee, FACE, rocket], 3) == [2, 0, 1]
    assert faces_first([FACE, cat, FACE, FACE], 3) == [0, 2, 1]
    assert faces_first(NO_FACES, 3) == [0, 1, 2]
    assert faces_first([cat], 3) == [0]
    assert not has_face(cat[:4])  # a strip that no face fits into


def test_a_random_effect_shows_a_drawn_and_the_nearest_outcome_and_the_sheet_the_nearest(tmp_path):
    collection = build(tmp_path, {"season": "<a_b> s", "sepia": "<c_d> t", "mine": "<e_f> m"})
    sizes = WorkingSizes.of(DataSettings(resolution=SIDE), 1)
    cases = Cases(NO_FACES, [0, 1, 2], [])
    truths = Truths(collection, cases, {}, sizes)
    outcomes = [ALL_EFFECTS["season"].outcomes(shown) for shown in NO_FACES]
    winters = [of_photo[3] for of_photo in outcomes]
    made = {"season": winters, "sepia": NO_FACES, "mine": [photo(i, SIDE, SIDE) for i in range(3)]}
    shown = show(cases, truths, {"source": made, "teacher": made, "student": made})
    season, sepia, mine = shown[0], shown[3], shown[6]
    drawn, nearest = season.right.values()
    assert list(season.right) == ["a random truth", "the truth nearest to student"]
    assert np.array_equal(nearest, winters[0])
    assert any(np.array_equal(drawn, outcome) for outcome in outcomes[0])
    assert list(sepia.right) == ["truth"]
    assert mine.right == {}
    assert np.array_equal(draw_sheet([season]), draw_sheet([replace(season, right={"truth": nearest})]))
    assert np.array_equal(draw_sheet([mine]), draw_sheet([replace(mine, right={"source": mine.source})]))
