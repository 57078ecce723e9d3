"""How many forwards of one image each verb takes: its time, in a unit that is the same on every device."""

from statistics import fmean

from collectionlora.adapters.roles import TEACHER
from collectionlora.config import Settings
from collectionlora.editing import STRIP
from collectionlora.effectbench.baselines import (
    FLOW_MATCHING,
    acceleration_settings,
    flow_matching_settings,
)
from collectionlora.effectbench.bench import GENERAL_KINDS
from collectionlora.effectbench.methods import SOURCE
from collectionlora.effectbench.running import DEFAULT_CROPS, split_steps, trained_methods
from collectionlora.effectbench.truths import TRUTH
from collectionlora.planning.timing import Encoding
from collectionlora.planning.workload import Workload
from collectionlora.runs.general_items import reads_answers
from collectionlora.runs.growing import growing_settings

BENCH_EDITS = 2 * len(GENERAL_KINDS)  # ordinary ones
BACKWARD = 2  # forwards that a backward takes as long as; one more where blocks are recomputed


def count_verb_forwards(workload: Workload, encoding: Encoding) -> dict[str, float]:
    """How long a verb takes, in forwards of one image; of several devices each its share or its own batch.

    What is drawn by chance counts with its mean.
    """
    settings, devices, few = workload.settings, workload.devices, workload.settings.sampling.steps
    teach, many = settings.teach, count_guided(settings, settings.targets.steps)
    photos = workload.all_photos()
    sampled, most = (number * settings.targets.samples * many for number in (sum(photos), max(photos)))
    items = settings.targets.general
    encoded = encode(encoding, sum(photos), 3 * workload.effects, 3) + encode(encoding, items, items, 2)
    made = encoded + sampled + count_composing(workload, settings, encoding) + count_answers(settings)
    targets, grown = made / devices, growing_settings(settings)
    return {
        "teach": workload.effects * teach.steps * teach.batch_size * (1 + backward(settings)),
        "prompts": 0,
        "targets": targets,
        "distill": targets + count_training(settings),
        "bench": count_bench(workload),
        # One process makes the targets of one new effect.
        "add": encode(encoding, max(photos), 3, 3)
        + most
        # A new effect lies on the others' pictures and they on its: all are drawn anew.
        + count_composing(workload, grown, encoding)
        + max(0, count_answers(grown) - count_answers(settings))
        + count_training(grown),
        "edit": few,
        "studio": few,
    }


def encode(encoding: Encoding, photos: int, alone: int, of_each: int) -> float:
    """Of photos and their texts: so many `alone`, or `of_each` photo where a base reads them together."""
    texts = photos * of_each if encoding.with_photos else alone
    return photos * encoding.photo + texts * encoding.text


def count_guided(settings: Settings, steps: int) -> int:
    """Of a picture by a teacher."""
    return steps * (1 if settings.targets.guidance_scale == 1 else 2)


def count_composing(workload: Workload, settings: Settings, encoding: Encoding) -> float:
    """Of the compositions that a run learns, encoded and sampled."""
    items = workload.count_compositions(settings)
    return encode(encoding, items, items, 4) + items * count_guided(settings, settings.targets.steps)


def count_answers(settings: Settings) -> int:
    """Of the base's answers to the general stream, if a run reads them."""
    each = count_guided(settings, settings.targets.steps)
    return settings.targets.general * each if reads_answers(settings) else 0


def backward(settings: Settings) -> int:
    """Forwards that a backward takes as long as."""
    return BACKWARD + settings.model.gradient_checkpointing


def count_training(settings: Settings) -> float:
    """Of a warm start and a distillation, on one device."""
    match, distill, back = settings.match, settings.distill, backward(settings)
    asked = count_guided(settings, 1) if match.loss == "velocity" else 0
    warm = (match.batch_size or distill.batch_size) * distill.accumulate * (1 + back + asked)
    streams = (
        (distill.effect_ratio, count_forwards(settings)),
        (1 - distill.effect_ratio, count_general(settings)),
    )
    update = sum(share * (forwards + back * backwards) for share, (forwards, backwards) in streams)
    images = distill.batch_size * distill.accumulate
    return match.updates * warm + distill.student_updates * images * update


def count_forwards(settings: Settings) -> tuple[float, int]:
    """The mean (forwards, backwards) of one sample in one student update of the effect stream.

    Guidance counts twice. With several lengths of the student's schedule each has its share. With
    `critic_samples = "simulated"` a simulation ends at the random step of the sample that goes furthest.
    """
    distill = settings.distill
    weights = distill.backward_weight, distill.target_weight, distill.anchor_weight
    return _count_update(settings, *(max(weight.start, weight.end) > 0 for weight in weights))


def count_general(settings: Settings) -> tuple[float, int]:
    """The same of the general stream, which has one loss."""
    weight = settings.distill.backward_weight
    return _count_update(settings, max(weight.start, weight.end) > 0, False, False)


def _count_update(settings: Settings, backward: bool, target: bool, anchor: bool) -> tuple[float, int]:
    distill = settings.distill
    simulated = distill.critic_samples == "simulated"
    size = distill.batch_size if simulated else None
    simulations = 1 + (distill.student_update_every if simulated else 0)
    rollout = fmean(mean_rollout(steps, size) for steps in distill.rollout_steps)
    critic_and_teacher = 1 + (1 if distill.guidance_scale == 1 else 2)
    learning = backward + target + anchor + distill.student_update_every
    return simulations * rollout + (backward + target) * critic_and_teacher + learning, learning


def mean_rollout(steps: int, size: int | None) -> float:
    """Forwards of a simulation: all steps, or those up to the furthest of `size` uniform draws of one.

    The furthest of B draws from 1 .. n is at least k with probability `1 - ((k - 1) / n)**B`.
    """
    return steps if size is None else steps - sum((k / steps) ** size for k in range(steps))


def count_bench(workload: Workload) -> float:
    """Of a bench's pictures, and of what its baselines train before them."""
    settings, methods = workload.settings, workload.methods
    pictures = workload.effects * DEFAULT_CROPS + BENCH_EDITS
    made = pictures * sum(count_method(method, settings) for method in methods)
    if dials := trained_methods(methods):
        made += workload.effects * len(STRIP) * count_method(dials[0], settings)
    trainings = [acceleration_settings(settings)] if workload.baselines else []
    trainings += [flow_matching_settings(settings)] if FLOW_MATCHING in methods else []
    return made / workload.devices + sum(map(count_training, trainings))


def count_method(name: str, settings: Settings) -> int:
    """Of one picture by a method of `bench`."""
    role, steps = split_steps(name)
    if name in (SOURCE.name, TRUTH):
        return 0
    if role == TEACHER:
        return count_guided(settings, steps or settings.targets.steps)
    return steps or settings.sampling.steps
