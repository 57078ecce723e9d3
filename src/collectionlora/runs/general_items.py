"""Items of a photo and a prompt each, in shards: a file of the cache holds one.

They are the general stream's, with instructions, and the compositions', with the prompts of two effects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from collectionlora.backbones.base import Prompt
from collectionlora.collection import Collection
from collectionlora.config import Settings
from collectionlora.pictures.buckets import chain_images, find_images
from collectionlora.pictures.photos import chunks
from collectionlora.streams import GeneralData, ShardedPrompt
from collectionlora.system.files import fingerprint

SHARD = 256  # items


@dataclass(frozen=True)
class Shard:
    """Some of the items, from item `first` of all `total`; all shards but the last are equally long."""

    photos: list[Path]
    prompts: list[str]
    first: int
    total: int
    number: int


def reads_answers(settings: Settings) -> bool:
    """Whether a run reads the base's answers to the items: a warm start does, where it draws any."""
    return settings.match.updates > 0 and settings.distill.effect_ratio < 1


def list_shards(collection: Collection, settings: Settings) -> list[Shard]:
    """All items of a collection, in shards.

    They are its pairs. Without pairs `targets.general` items are drawn from its photos and instructions.

    Raises:
        UserError: a photo or a line is missing or wrong.
    """
    items = collection.general_pairs if collection.has_pairs else _draw_items(collection, settings)
    shards = []
    for part in chunks(len(items), SHARD):
        photos, prompts = zip(*items[part], strict=True)
        number = part.start // SHARD
        shards.append(Shard(list(photos), list(prompts), part.start, len(items), number))
    return shards


def _draw_items(collection: Collection, settings: Settings) -> list[tuple[Path, str]]:
    photos, prompts = collection.general_photo_paths(), collection.general_prompts()
    rng = np.random.default_rng(int(fingerprint(*prompts, *photos), 16))
    count = settings.targets.general
    drawn = rng.integers(len(photos), size=count), rng.integers(len(prompts), size=count)
    return [(photos[i], prompts[j]) for i, j in zip(*drawn, strict=True)]


def gather_shards(
    encoded: Sequence[Mapping[str, Tensor]], answers: Sequence[Mapping[str, Tensor]], seed: int
) -> GeneralData:
    """The items of all shards, whose files are mapped: nothing is read before it is drawn.

    Args:
        encoded: `sources`, `prompt` and `uncond` of each shard.
        answers: `targets` of each shard; none without a warm start.
        seed: with an item's position it gives the noise of its answer.
    """
    sources = [find_images("sources", shard) for shard in encoded]
    return GeneralData(
        chain_images(sources),
        _gather_prompts("prompt", encoded, len(sources[0])),
        chain_images([find_images("targets", shard) for shard in answers]) if answers else None,
        _gather_prompts("uncond", encoded, len(sources[0])),
        seed,
    )


def _gather_prompts(name: str, encoded: Sequence[Mapping[str, Tensor]], size: int) -> Prompt | ShardedPrompt:
    shards = [Prompt.from_tensors(name, shard) for shard in encoded]
    return shards[0] if len(shards) == 1 else ShardedPrompt(shards, size)
