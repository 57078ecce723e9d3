"""EffectBench: what is judged, and what a way to make effects has to offer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from collectionlora.effects.crops import PhotoPool
from collectionlora.effects.ordinary import ORDINARY_EDITS, Edit, draw_edit
from collectionlora.pictures.buckets import find_buckets
from collectionlora.pictures.photos import Photo, to_images, to_photos
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint

GENERAL = "general"
GENERAL_KINDS = tuple(k for k, edit in ORDINARY_EDITS.items() if edit.group in ("keep", "photometric"))

# Images in [0, 1], prompts and one seed for each to edited images.
Sampler = Callable[[Tensor, Sequence[str], Sequence[int]], Tensor]
Strip = Callable[[str, Photo, int], list[Photo]]  # effect, photo and seed to pictures by rising strength
Pictures = dict[str, dict[str, list[Photo]]]  # by method, then by effect; the ordinary edits as `GENERAL`


@dataclass(frozen=True)
class Method:
    """One way to make the effects: `sample(effect, images, seeds)`; `general` follows instructions.

    `num_bytes` is the size of the LoRA files that it needs beside the base. `strip` is there for a method
    with a strength dial: a photo from untouched to the whole effect. `reads(effect, "")` and `reads(GENERAL,
    instruction)` are the texts that the network reads beside a photo.
    """

    name: str
    nfe: int
    sample: Callable[[str, Tensor, Sequence[int]], Tensor]
    general: Sampler
    num_bytes: int = 0
    strip: Strip | None = None
    reads: Callable[[str, str], Sequence[str]] = lambda effect, instruction: ()


@dataclass(frozen=True)
class Cases:
    """What is judged: held-out photos at their working sizes, the same for every effect, and ordinary edits.

    The edits are squares and carry their truth. `names` are of the photographs that the photos show whole;
    empty for random crops.
    """

    photos: list[Photo]
    seeds: list[int]
    edits: list[Edit]
    names: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Tells these photos and seeds from others, in metrics.json."""
        return fingerprint(*(photo.tobytes() for photo in self.photos), self.seeds)


def draw_edits(pool: PhotoPool, rng: np.random.Generator, side: int) -> list[Edit]:
    """Two ordinary edits of each allowed kind, on random crops."""
    size = side, side
    return [draw_edit(rng, pool, [], size, kinds=[kind]) for kind in GENERAL_KINDS for _ in range(2)]


def draw_crops(pool: PhotoPool, num_photos: int, seed: int, side: int) -> Cases:
    """`num_photos` random square crops, and ordinary edits."""
    rng = np.random.default_rng(seed)
    photos = [pool.crop(rng, (side, side)) for _ in range(num_photos)]
    edits = draw_edits(pool, rng, side)
    return Cases(photos, [int(s) for s in rng.integers(2**31, size=num_photos)], edits)


def draw_whole(photographs: Mapping[str, Photo], num_photos: int, seed: int, sizes: WorkingSizes) -> Cases:
    """`num_photos` photographs as they are trained on, without repeats, and ordinary edits.

    Raises:
        UserError: there are fewer photographs.
    """
    if num_photos > len(photographs):
        message = f"{num_photos} are asked for, there are {len(photographs)}"
        raise UserError("", "--crops", message, "give more --photos, or lower --crops")
    rng = np.random.default_rng(seed)
    names = [list(photographs)[i] for i in rng.permutation(len(photographs))[:num_photos]]
    photos = [sizes.fit(photographs[name]) for name in names]
    edits = draw_edits(PhotoPool(list(photographs.values())), rng, sizes.resolution)
    return Cases(photos, [int(s) for s in rng.integers(2**31, size=num_photos)], edits, names)


def join_cases(drawn: Sequence[Cases]) -> Cases:
    """The cases of several seeds, one after the other."""
    return Cases(
        [photo for cases in drawn for photo in cases.photos],
        [seed for cases in drawn for seed in cases.seeds],
        [edit for cases in drawn for edit in cases.edits],
        [name for cases in drawn for name in cases.names],
    )


def make(method: Method, effect: str, cases: Cases) -> list[Photo]:
    """A method's pictures of one effect; photos of one size are made together."""
    made: dict[int, Photo] = {}
    for bucket in find_buckets(cases.photos):
        photos, seeds = [cases.photos[i] for i in bucket], [cases.seeds[i] for i in bucket]
        made |= zip(bucket, to_photos(method.sample(effect, to_images(photos), seeds)), strict=True)
    return [made[i] for i in range(len(cases.photos))]


def make_edits(method: Method, cases: Cases) -> list[Photo]:
    """A method's pictures of the ordinary edits."""
    sources = to_images([e.source for e in cases.edits])
    texts, seeds = [e.instruction for e in cases.edits], list(range(len(cases.edits)))
    return to_photos(method.general(sources, texts, seeds))
