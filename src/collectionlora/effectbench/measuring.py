"""Which measures a bench can take, and what it has to leave out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collectionlora.config import BenchSettings, Settings
from collectionlora.effectbench.classifier import ConceptClassifier, load_or_train, probabilities
from collectionlora.effectbench.heldout import Heldout
from collectionlora.effectbench.judging import ImagePair
from collectionlora.effectbench.scoring import Meter, average, concept_meter, teacher_meter, truth_meter
from collectionlora.effectbench.similarity import missing_models, similarity_meters
from collectionlora.effectbench.truths import Truths
from collectionlora.system.progress import Progress


def list_skipped(truths: Truths, references: Mapping[str, Any], settings: BenchSettings) -> dict[str, str]:
    """What is not measured, by name, and why."""
    effects = [e.name for e in truths.collection.effects]
    unknown, alone = (
        [e for e in effects if not known(e)] for known in (truths.known, references.__contains__)
    )
    reasons = missing_models(settings)
    if unknown:
        reasons["truth"] = f"not known of {', '.join(unknown)}"
    if alone and not {"clip", "dino"} <= reasons.keys():
        reasons["reference images"] = f"no image pairs of {', '.join(alone)}: fill pairs/, or make targets"
    return reasons


def classifier_facts(classifier: ConceptClassifier, truths: Truths) -> dict[str, Any]:
    """What the classifier knows, and how often it is right on true effects of the judged photos.

    `untouched_accuracy` is how often it answers "none" to a photo that nothing was done to.
    """
    photos = truths.cases.photos
    columns = {}
    for index, effect in enumerate(classifier.effects):
        shown = probabilities(classifier, photos, truths.draw(effect)).argmax(1).numpy()
        columns[effect] = (shown == index).astype(float)
    untouched = probabilities(classifier, photos, photos).argmax(1).numpy() == len(classifier.effects)
    both = average(
        {"accuracy": np.mean(list(columns.values()), axis=0), "untouched_accuracy": untouched * 1.0}
    )
    return {"classes": [*classifier.effects, "none"], **both}


def gather_meters(
    truths: Truths,
    heldout: Heldout,
    references: Mapping[str, Sequence[ImagePair]],
    settings: Settings,
    progress: Progress,
) -> tuple[dict[str, Any], list[Meter]]:
    """What metrics.json says of the measures, and the meters; the classifier is trained if it is not kept.

    Args:
        references: image pairs by effect.

    Raises:
        UserError: a model that is given cannot be opened.
    """
    collection, cases = truths.collection, truths.cases
    facts: dict[str, Any] = {"skipped": list_skipped(truths, references, settings.bench)}
    meters: list[Meter] = [truth_meter(truths), teacher_meter(truths)]
    if truths.procedural:
        effects, pool = truths.procedural, heldout.others
        steps, seed = heldout.classifier_steps, heldout.seeds[0]
        classifier = load_or_train(collection.folder / "bench", effects, pool, steps, seed, progress)
        meters.append(concept_meter(classifier, cases))
        facts["classifier"] = classifier_facts(classifier, truths)
    prompts = {e.name: e.teacher_prompt for e in collection.effects}
    edited = {effect: [target for _, target in pairs] for effect, pairs in references.items()}
    meters += similarity_meters(settings.bench, cases, edited, prompts)
    return facts, meters
