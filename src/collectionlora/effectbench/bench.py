"""EffectBench on effects with a known truth: every method on the same photographs, seeds and measures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from collectionlora.data import Photo, to_images, to_photos
from collectionlora.effectbench.classifier import ConceptClassifier, probabilities
from collectionlora.effectbench.metrics import coverage, nearest_outcome, ssim, valid_outcomes
from collectionlora.effects import EFFECTS
from collectionlora.effects.ordinary import ORDINARY_EDITS, Edit, PhotoPool, draw_edit

BAD_CASE_PSNR = 15.0  # below this fidelity a picture is a bad case whatever the classifier says
GENERAL_KINDS = tuple(k for k, edit in ORDINARY_EDITS.items() if edit.group in ("keep", "photometric"))

# Images in [0, 1], prompts and one seed for each to edited images.
Sampler = Callable[[Tensor, Sequence[str], Sequence[int]], Tensor]
Pictures = dict[str, dict[str, list[Photo]]]  # by method, then by effect


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


def measure(
    pictures: Mapping[str, Sequence[Photo]], cases: Cases, classifier: ConceptClassifier
) -> dict[str, dict[str, Any]]:
    """Per effect: psnr, ssim, concept_accuracy, bad_case_rate, bleed, coverage; `pictures` by effect.

    PSNR and SSIM are to the nearest valid outcome; bleed is the probability that the classifier puts on
    other effects; a bad case is a wrong concept or a PSNR under `BAD_CASE_PSNR`.
    """
    table = {}
    for name, made in pictures.items():
        effect = EFFECTS[name]
        outcomes = [valid_outcomes(effect, photo) for photo in cases.photos]
        nearest = [nearest_outcome(image, valid) for image, valid in zip(made, outcomes, strict=True)]
        psnrs = np.array([value for _, value in nearest])
        similar = [ssim(m, o[i]) for m, o, (i, _) in zip(made, outcomes, nearest, strict=True)]
        index = classifier.effects.index(name)
        chances = probabilities(classifier, cases.photos, made)
        right = (chances.argmax(1) == index).numpy()
        others = torch.cat([chances[:, :index], chances[:, index + 1 : -1]], dim=1)
        table[name] = {
            "psnr": float(psnrs.mean()),
            "ssim": float(np.mean(similar)),
            "concept_accuracy": float(right.mean()),
            "bad_case_rate": float((~right | (psnrs < BAD_CASE_PSNR)).mean()),
            "bleed": float(others.sum(1).mean()),
            "coverage": coverage([i for i, _ in nearest], len(outcomes[0])),
            "psnr_by_photo": psnrs.round(3).tolist(),
        }
    return table


def general_psnr(method: Method, cases: Cases) -> float:
    """Mean PSNR in dB to the truth of ordinary edits: what is left of the base's abilities."""
    sources = to_images([e.source for e in cases.edits])
    made = method.general(sources, [e.instruction for e in cases.edits], list(range(len(cases.edits))))
    errors = (made - to_images([e.target for e in cases.edits])).square().flatten(1).mean(1)
    return float((-10 * errors.clamp_min(1e-6).log10()).mean())


def bootstrap_interval(values: Sequence[float], seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean."""
    rng = np.random.default_rng(seed)
    data = np.asarray(values)
    means = data[rng.integers(len(data), size=(draws, len(data)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(per_effect: dict[str, dict[str, Any]], nfe: int, general: float) -> dict[str, Any]:
    """One method's entry of metrics.json: means over the effects, the worst effect, the interval."""
    means = {
        key: float(np.mean([row[key] for row in per_effect.values()]))
        for key in ("psnr", "ssim", "concept_accuracy", "bad_case_rate", "bleed", "coverage")
    }
    by_photo = np.mean([row["psnr_by_photo"] for row in per_effect.values()], axis=0)
    worst = min(per_effect, key=lambda name: per_effect[name]["psnr"])
    shown = {n: {k: v for k, v in row.items() if k != "psnr_by_photo"} for n, row in per_effect.items()}
    return {
        "nfe": nfe,
        **means,
        "general_psnr": general,
        "worst_effect": worst,
        "per_effect": shown,
        "ci95": {"psnr": bootstrap_interval(by_photo)},
    }


def compare(
    methods: Sequence[Method],
    effects: Sequence[str],
    cases: Cases,
    classifier: ConceptClassifier,
    progress: Callable[[str, int, int, dict[str, float]], None],
) -> tuple[dict[str, dict[str, Any]], Pictures]:
    """Every method on every effect: the `methods` of metrics.json, and the pictures."""
    table, pictures = {}, {}
    for index, method in enumerate(methods):
        made = {effect: make(method, effect, cases) for effect in effects}
        per_effect = measure(made, cases, classifier)
        table[method.name] = summarise(per_effect, method.nfe, general_psnr(method, cases))
        pictures[method.name] = made
        progress("judge", index + 1, len(methods), {})
    return table, pictures
