"""From pictures to the entries of metrics.json.

A meter measures all methods' pictures of one effect, photo by photo. Every mean comes with its bootstrap 95%
interval, which resamples photos.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from collectionlora.adapters.roles import TEACHER
from collectionlora.effectbench.bench import GENERAL, Cases, Method, Pictures
from collectionlora.effectbench.classifier import ConceptClassifier, probabilities
from collectionlora.effectbench.metrics import coverage, nearest_outcome, perceptual_distance, psnr, ssim
from collectionlora.effectbench.truths import Truths
from collectionlora.pictures.photos import Photo

BAD_CASE_PSNR = 15.0  # below this fidelity a picture is a bad case whatever the classifier says
# The first that there is tells the worst effect.
LEADING = ("psnr", "vsa", "clip_reference", "clip_text", "teacher_psnr")

Values = NDArray[Any]


@dataclass(frozen=True)
class Measured:
    """One method on one effect.

    `columns` are measured photo by photo, `[N]` each (NaN where a photo is not judged), by their names in
    metrics.json; `facts` are of all photos together.
    """

    columns: dict[str, Values] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


# From an effect and the pictures of it by method to what is measured of each method.
Meter = Callable[[str, Mapping[str, Sequence[Photo]]], dict[str, Measured]]


def truth_meter(truths: Truths) -> Meter:
    """Fidelity to the nearest right answer, of effects whose truth is known."""

    def measure_one(made: Sequence[Photo], outcomes: Sequence[Sequence[Photo]]) -> Measured:
        nearest = [nearest_outcome(image, valid) for image, valid in zip(made, outcomes, strict=True)]
        chosen = [valid[index] for valid, (index, _) in zip(outcomes, nearest, strict=True)]
        pairs = list(zip(made, chosen, strict=True))
        return Measured(
            {
                "psnr": np.array([value for _, value in nearest]),
                "ssim": np.array([ssim(*pair) for pair in pairs]),
                "perceptual_distance": np.array([perceptual_distance(*pair) for pair in pairs]),
            },
            {"coverage": coverage([index for index, _ in nearest], len(outcomes[0]))},
        )

    def measure(effect: str, made: Mapping[str, Sequence[Photo]]) -> dict[str, Measured]:
        if not truths.known(effect):
            return {}
        outcomes = truths.outcomes(effect)
        return {method: measure_one(photos, outcomes) for method, photos in made.items()}

    return measure


def teacher_meter(truths: Truths) -> Meter:
    """Fidelity to the teacher's picture of the same photo and seed, of effects whose truth is not known."""

    def measure(effect: str, made: Mapping[str, Sequence[Photo]]) -> dict[str, Measured]:
        if truths.known(effect) or TEACHER not in made:
            return {}
        return {
            method: Measured(
                {"teacher_psnr": np.array([psnr(*pair) for pair in zip(photos, made[TEACHER], strict=True)])}
            )
            for method, photos in made.items()
            if method != TEACHER
        }

    return measure


def concept_meter(classifier: ConceptClassifier, cases: Cases) -> Meter:
    """Which effect the classifier takes a picture for; bleed is the probability that it puts on others.

    `taken_for` counts its classes: the effects that it knows, then "none".
    """

    def measure_one(index: int, photos: Sequence[Photo]) -> Measured:
        chances = probabilities(classifier, cases.photos, photos)
        others = torch.cat([chances[:, :index], chances[:, index + 1 : -1]], dim=1)
        shown = chances.argmax(1).numpy()
        return Measured(
            {"concept_accuracy": (shown == index).astype(float), "bleed": others.sum(1).numpy()},
            {"taken_for": np.bincount(shown, minlength=chances.shape[1]).tolist()},
        )

    def measure(effect: str, made: Mapping[str, Sequence[Photo]]) -> dict[str, Measured]:
        if effect not in classifier.effects:
            return {}
        index = classifier.effects.index(effect)
        return {method: measure_one(index, photos) for method, photos in made.items()}

    return measure


def bad_cases(columns: Mapping[str, Values]) -> dict[str, Values]:
    """A bad case shows a wrong concept or has a low PSNR, as far as either is known."""
    signs = []
    if "psnr" in columns:
        signs.append(columns["psnr"] < BAD_CASE_PSNR)
    if "concept_accuracy" in columns:
        signs.append(columns["concept_accuracy"] == 0)
    return {"bad_case_rate": np.any(signs, axis=0).astype(float)} if signs else {}


def bootstrap_interval(
    values: Values, photographs: Values, seed: int = 0, draws: int = 1000
) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean `[N]`; photographs are resampled, each with all of its values.

    Args:
        photographs: which one each value is of, `[N]`.
    """
    _, places = np.unique(photographs, return_inverse=True)
    sums, counts = np.bincount(places, weights=values), np.bincount(places)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def average(columns: Mapping[str, Values], photographs: Sequence[str] = ()) -> dict[str, Any]:
    """Means by name over what is not NaN, and under `ci95` their bootstrap intervals.

    Args:
        photographs: what each row shows, where seeds show the same ones; by default each row is one.
    """
    means: dict[str, Any] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for key, column in columns.items():
        known = ~np.isnan(column)
        if known.any():
            shown = np.array(photographs) if photographs else np.arange(len(column))
            means[key] = float(column[known].mean())
            intervals[key] = bootstrap_interval(column[known], shown[known])
    if "vsa" in means:
        assert means["vsa"] <= 5 * (1 - means["bcr"]) + 1e-9  # both come from one answer
    return {**means, "ci95": intervals}


def mean_over_effects(rows: Iterable[Mapping[str, Values]]) -> dict[str, Values]:
    """Each photo's mean over the effects that have a column, NaN left out."""
    stacks: dict[str, list[Values]] = {}
    for row in rows:
        for key, column in row.items():
            stacks.setdefault(key, []).append(column)
    return {
        key: np.ma.masked_invalid(np.stack(stack)).mean(0).filled(np.nan) for key, stack in stacks.items()
    }


def summarise(measured: Mapping[str, Measured], photographs: Sequence[str] = ()) -> dict[str, Any]:
    """One method's entry of metrics.json from what was measured of it by effect.

    Means over effects and photos; the same for each effect; the worst effect; and how often each effect
    (rows) was taken for each class of the classifier (columns).
    """
    columns = {effect: {**one.columns, **bad_cases(one.columns)} for effect, one in measured.items()}
    per_effect = {effect: average(row, photographs) for effect, row in columns.items()}
    for effect, one in measured.items():
        per_effect[effect] |= {key: fact for key, fact in one.facts.items() if key != "taken_for"}
    entry = {**average(mean_over_effects(columns.values()), photographs), "per_effect": per_effect}
    coverages = [row["coverage"] for row in per_effect.values() if "coverage" in row]
    if coverages:
        entry["coverage"] = float(np.mean(coverages))
    for key in LEADING:
        values = {effect: row[key] for effect, row in per_effect.items() if key in row}
        if values:
            entry["worst_effect"] = min(values, key=values.__getitem__)
            break
    confusion = [one.facts["taken_for"] for one in measured.values() if "taken_for" in one.facts]
    return {**entry, "confusion": confusion} if confusion else entry


def general_fidelity(made: Sequence[Photo], references: Sequence[Photo]) -> float:
    """Mean PSNR in dB over ordinary edits: what is left of the base's abilities."""
    return float(np.mean([psnr(*pair) for pair in zip(made, references, strict=True)]))


def score(
    methods: Mapping[str, Method], pictures: Pictures, cases: Cases, meters: Sequence[Meter], base: str
) -> dict[str, dict[str, Any]]:
    """The `methods` of metrics.json.

    Args:
        base: the method whose ordinary edits are the bare base's; used if it is among the methods.
    """
    effects = [name for name in next(iter(pictures.values())) if name != GENERAL]
    measured: dict[str, dict[str, Measured]] = {name: {} for name in methods}
    for effect in effects:
        made = {name: pictures[name][effect] for name in methods}
        for name in methods:
            measured[name][effect] = Measured()
        for meter in meters:
            for name, one in meter(effect, made).items():
                measured[name][effect].columns.update(one.columns)
                measured[name][effect].facts.update(one.facts)
    table = {}
    for name, method in methods.items():
        edits = pictures[name][GENERAL]
        table[name] = {
            "nfe": method.nfe,
            "bytes": method.num_bytes,
            **summarise(measured[name], cases.names),
            "general_psnr": general_fidelity(edits, [edit.target for edit in cases.edits]),
        }
        if base in pictures and name != base:
            table[name]["general_base_psnr"] = general_fidelity(edits, pictures[base][GENERAL])
    return table
