"""EffectBench on effects with a known truth: every method on the same photographs, seeds and measures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from collectionlora.data import Photo, to_images, to_photos
from collectionlora.effectbench.classifier import ConceptClassifier, probabilities
from collectionlora.effectbench.metrics import coverage, nearest_outcome, psnr, ssim, valid_outcomes
from collectionlora.effects import EFFECTS
from collectionlora.effects.ordinary import ORDINARY_EDITS, Edit, PhotoPool, draw_edit

GENERAL = "general"
BAD_CASE_PSNR = 15.0  # below this fidelity a picture is a bad case whatever the classifier says
GENERAL_KINDS = tuple(k for k, edit in ORDINARY_EDITS.items() if edit.group in ("keep", "photometric"))

# Images in [0, 1], prompts and one seed for each to edited images.
Sampler = Callable[[Tensor, Sequence[str], Sequence[int]], Tensor]
Values = NDArray[Any]
Pictures = dict[str, dict[str, list[Photo]]]  # by method, then by effect; the ordinary edits as `GENERAL`


@dataclass(frozen=True)
class Method:
    """One way to make the effects: `sample(effect, images, seeds)`; `general` follows instructions."""

    name: str
    nfe: int
    sample: Callable[[str, Tensor, Sequence[int]], Tensor]
    general: Sampler


@dataclass(frozen=True)
class Cases:
    """What is judged: held-out photos, the same for every effect, and ordinary edits with their truth."""

    photos: list[Photo]
    seeds: list[int]
    edits: list[Edit]


def draw_cases(pool: PhotoPool, num_photos: int, seed: int) -> Cases:
    """`num_photos` held-out crops of 64 x 64, and two ordinary edits of each allowed kind."""
    rng = np.random.default_rng(seed)
    photos = [pool.crop(rng) for _ in range(num_photos)]
    edits = [draw_edit(rng, pool, [], kinds=[kind]) for kind in GENERAL_KINDS for _ in range(2)]
    return Cases(photos, [int(s) for s in rng.integers(2**31, size=num_photos)], edits)


def make(method: Method, effect: str, cases: Cases) -> list[Photo]:
    """A method's pictures of one effect."""
    return to_photos(method.sample(effect, to_images(cases.photos), cases.seeds))


@dataclass(frozen=True)
class Scores:
    """One method on one effect, photo by photo, each `[N]`.

    PSNR and SSIM are to the nearest valid outcome; bleed is the probability that the classifier puts on other
    effects; `shown` are indices of its classes; `hits` are the outcomes that the pictures are nearest to, of
    `num_outcomes`.
    """

    psnr: Values
    ssim: Values
    bleed: Values
    shown: Values
    right: Values
    hits: list[int]
    num_outcomes: int

    def means(self) -> dict[str, Values]:
        """What is averaged, by its name in metrics.json; a bad case is a wrong concept or a low PSNR."""
        bad = (self.right == 0) | (self.psnr < BAD_CASE_PSNR)
        return {
            "psnr": self.psnr,
            "ssim": self.ssim,
            "concept_accuracy": self.right,
            "bad_case_rate": bad.astype(float),
            "bleed": self.bleed,
        }


def measure(effect: str, made: Sequence[Photo], cases: Cases, classifier: ConceptClassifier) -> Scores:
    """The scores of one method's pictures of one effect."""
    outcomes = [valid_outcomes(EFFECTS[effect], photo) for photo in cases.photos]
    nearest = [nearest_outcome(image, valid) for image, valid in zip(made, outcomes, strict=True)]
    index = classifier.effects.index(effect)
    chances = probabilities(classifier, cases.photos, made)
    others = torch.cat([chances[:, :index], chances[:, index + 1 : -1]], dim=1)
    shown = chances.argmax(1).numpy()
    return Scores(
        psnr=np.array([value for _, value in nearest]),
        ssim=np.array([ssim(m, o[i]) for m, o, (i, _) in zip(made, outcomes, nearest, strict=True)]),
        bleed=others.sum(1).numpy(),
        shown=shown,
        right=(shown == index).astype(float),
        hits=[i for i, _ in nearest],
        num_outcomes=len(outcomes[0]),
    )


def make_edits(method: Method, cases: Cases) -> list[Photo]:
    """A method's pictures of the ordinary edits."""
    sources = to_images([e.source for e in cases.edits])
    made = method.general(sources, [e.instruction for e in cases.edits], list(range(len(cases.edits))))
    return to_photos(made)


def general_psnr(made: Sequence[Photo], cases: Cases) -> float:
    """Mean PSNR in dB to the truth of ordinary edits: what is left of the base's abilities."""
    pairs = zip(made, cases.edits, strict=True)
    return float(np.mean([psnr(picture, edit.target) for picture, edit in pairs]))


def bootstrap_interval(values: Values, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(scores: Mapping[str, Scores], nfe: int, general: float) -> dict[str, Any]:
    """One method's entry of metrics.json from its scores by effect.

    Means over effects and photos with their intervals, which resample photos; the same for each effect and
    for the effect of the lowest PSNR; and how often each effect (rows) was taken for each class (columns: the
    effects, then "none").
    """
    per_effect: dict[str, dict[str, Any]] = {}
    for name, one in scores.items():
        per_effect[name] = average(one.means())
        per_effect[name]["coverage"] = coverage(one.hits, one.num_outcomes)
    together = {
        key: np.mean([one.means()[key] for one in scores.values()], axis=0)
        for key in next(iter(scores.values())).means()
    }
    worst = min(per_effect, key=lambda name: per_effect[name]["psnr"])
    counts = [np.bincount(one.shown, minlength=len(scores) + 1).tolist() for one in scores.values()]
    return {
        "nfe": nfe,
        **average(together),
        "coverage": float(np.mean([row["coverage"] for row in per_effect.values()])),
        "general_psnr": general,
        "worst_effect": worst,
        "per_effect": per_effect,
        "confusion": counts,
    }


def average(values: Mapping[str, Values]) -> dict[str, Any]:
    """Means by name, and under `ci95` their bootstrap intervals."""
    means: dict[str, Any] = {key: float(column.mean()) for key, column in values.items()}
    return {**means, "ci95": {key: bootstrap_interval(column) for key, column in values.items()}}


def judge(
    methods: Mapping[str, Method], pictures: Pictures, cases: Cases, classifier: ConceptClassifier
) -> dict[str, dict[str, Any]]:
    """The `methods` of metrics.json."""
    table = {}
    for name, method in methods.items():
        made = dict(pictures[name])
        edits = made.pop(GENERAL)
        scores = {effect: measure(effect, photos, cases, classifier) for effect, photos in made.items()}
        table[name] = summarise(scores, method.nfe, general_psnr(edits, cases))
    return table
