import numpy as np
import pytest

from collectionlora.effectbench.metrics import coverage, nearest_outcome, psnr, valid_outcomes
from collectionlora.effectbench.scoring import bootstrap_interval
from collectionlora.effects import EFFECTS

PHOTO = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def test_psnr_by_hand():
    a, b = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 10, np.uint8)
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / 100))
    assert psnr(a, a) == 60


def test_the_nearest_outcome_is_found():
    outcomes = EFFECTS["duotone"].outcomes(PHOTO)
    for index, outcome in enumerate(outcomes):
        assert nearest_outcome(outcome, outcomes) == (index, 60.0)


def test_outcomes_of_every_kind_of_effect():
    assert len(valid_outcomes(EFFECTS["thermal"], PHOTO)) == 1
    assert len(valid_outcomes(EFFECTS["duotone"], PHOTO)) == EFFECTS["duotone"].num_outcomes
    family = valid_outcomes(EFFECTS["snow"], PHOTO)
    assert len(family) > 10
    assert not np.array_equal(family[0], family[1])


@pytest.mark.parametrize(
    ("hits", "expected"), [([0, 1, 2, 3], 1.0), ([0, 0, 0, 0], 0.0), ([0, 0, 1, 1], 1 / 3), ([2], 0.0)]
)
def test_coverage(hits, expected):
    assert coverage(hits, 4) == pytest.approx(expected)


def test_a_bootstrap_interval_holds_the_mean_and_narrows():
    rng = np.random.default_rng(0)
    few, many = rng.normal(20, 1, 10), rng.normal(20, 1, 1000)
    low, high = bootstrap_interval(few, np.arange(len(few)))
    assert low < few.mean() < high
    assert high - low > 3 * np.subtract(*bootstrap_interval(many, np.arange(len(many)))[::-1])
