"""Compositions: photos that get two effects, one on top of the other, under the prompts of both.

The student reads `apply A, then B` and sees the photo. The teacher of B answers, and sees the picture that
the teacher of A made of that photo. So two effects in one prompt are learned without a teacher of both.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from collectionlora.collection import MANIFEST, Collection, Effect
from collectionlora.config import Settings
from collectionlora.prompting.triggers import compose
from collectionlora.runs.general_items import Shard
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint


@dataclass(frozen=True)
class CompositionShard(Shard):
    """The items whose second effect is `second`; the first effect of each, and its photo's place there."""

    second: Effect
    below: list[tuple[str, int]]


def list_compositions(
    collection: Collection, settings: Settings, prompts: Mapping[str, str]
) -> list[CompositionShard]:
    """`targets.compositions` items for each effect, on pictures of others, drawn by the collection's content.

    Effects with reference images take no part.

    Args:
        prompts: by effect, what a user of the student writes.

    Raises:
        UserError: fewer than two effects are left.
    """
    count = settings.targets.compositions
    if count == 0 or settings.match.updates == 0:
        return []
    effects = [effect for effect in collection.effects if not effect.references]
    if len(effects) < 2:
        path, message = collection.folder / MANIFEST, "needs two effects without reference images"
        raise UserError(path, "targets.compositions", message, "set it to 0, or add effects")
    photos = {effect.name: collection.photo_paths(effect) for effect in effects}
    shards = []
    for number, second in enumerate(effects):
        others = [effect.name for effect in effects if effect is not second]
        rng = np.random.default_rng(int(fingerprint(second.name, *others), 16))
        first = [others[i] for i in rng.integers(len(others), size=count)]
        below = [(name, int(rng.integers(len(photos[name])))) for name in first]
        texts = [compose([prompts[name], prompts[second.name]]) for name in first]
        shown = [photos[name][place] for name, place in below]
        total = count * len(effects)
        shards.append(CompositionShard(shown, texts, number * count, total, number, second, below))
    return shards
