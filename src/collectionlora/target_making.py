"""Teacher targets: samples of each teacher on its effect's photos, made once, kept in the cache.

A cache file is named after everything it depends on (photos, teacher file, prompt, settings), so a change
makes a new one and an interrupted run goes on with what is still missing.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from collectionlora.adapters.roles import TeacherLibrary
from collectionlora.backbones.base import Backbone, Condition
from collectionlora.collection import Collection, Effect
from collectionlora.config import Settings
from collectionlora.data import crop_square, read_photo, to_images
from collectionlora.files import write_tensors
from collectionlora.sampling import Denoiser, sample_many_steps
from collectionlora.streams import EffectData, GeneralData

CACHE = "cache"
CHUNK = 16  # images sampled at a time
Progress = Callable[[str, int, int], None]  # (what, images done, images in all)


def fingerprint(*parts: Any) -> str:
    """A short hash of values, and of the contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def read_latents(backbone: Backbone, paths: Sequence[Path], settings: Settings) -> Tensor:
    """Photos as latents of the training size, `[N, C, H, W]`."""
    side = settings.data.resolution
    return backbone.encode_image(to_images([crop_square(read_photo(path), side) for path in paths]))


def cache_key(collection: Collection, settings: Settings, *parts: Any) -> str:
    """The fingerprint of `parts` and of all that any cached images depend on."""
    return fingerprint(
        collection.manifest.base,
        settings.targets.model_dump(),
        settings.data.model_dump(),
        settings.sampling.shift,
        *parts,
    )


def effect_key(collection: Collection, effect: Effect, settings: Settings) -> str:
    """The fingerprint of an effect's targets."""
    teacher, photos = collection.teacher_path(effect), collection.photo_paths(effect)
    return cache_key(collection, settings, effect.teacher_prompt, teacher, *photos)


def cache_path(collection: Collection, name: str, key: str) -> Path:
    return collection.folder / CACHE / f"{name}-{key}.safetensors"


class TargetMaker:
    """Makes and caches the data of one collection."""

    def __init__(
        self,
        collection: Collection,
        backbone: Backbone,
        teachers: TeacherLibrary,
        settings: Settings,
        progress: Progress,
    ):
        self.collection, self.backbone, self.teachers = collection, backbone, teachers
        self.settings, self.progress = settings, progress
        self.uncond = backbone.encode_prompt([""])

    def effect(self, effect: Effect, student_prompt: str) -> EffectData:
        """Sources, targets and prompts of one effect."""
        paths = self.collection.photo_paths(effect)
        key = effect_key(self.collection, effect, self.settings)
        encode = self.backbone.encode_prompt

        def make() -> dict[str, Tensor]:
            sources = read_latents(self.backbone, paths, self.settings)
            samples = self.settings.targets.samples
            repeated = sources.repeat_interleave(samples, dim=0)
            prompt = encode([effect.teacher_prompt]).expand(len(repeated))
            with self.teachers.use(effect.name):
                targets = self._sample(effect.name, Condition(prompt, repeated), int(key, 16))
            return {"sources": sources, "targets": targets.unflatten(0, (len(sources), samples))}

        tensors = self._cached(effect.name, key, make)
        return EffectData(
            effect.name,
            **tensors,
            teacher_prompt=encode([effect.teacher_prompt]),
            student_prompt=encode([student_prompt]),
        )

    def general(self) -> GeneralData:
        """Photos paired with instructions, and the bare base's answers for the warm start."""
        paths = self.collection.general_photo_paths()
        instructions = self.collection.general_prompts()
        key = cache_key(self.collection, self.settings, *instructions, *paths)
        rng = np.random.default_rng(int(key, 16))
        count = self.settings.targets.general
        which_photo = torch.from_numpy(rng.integers(len(paths), size=count))
        which_prompt = torch.from_numpy(rng.integers(len(instructions), size=count))
        prompt = self.backbone.encode_prompt(instructions)[which_prompt]

        def make() -> dict[str, Tensor]:
            sources = read_latents(self.backbone, paths, self.settings)[which_photo]
            with self.teachers.use(None):
                targets = self._sample("general", Condition(prompt, sources), int(key, 16))
            return {"sources": sources, "targets": targets}

        return GeneralData(prompt=prompt, **self._cached("general", key, make))

    def _cached(self, name: str, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path = cache_path(self.collection, name, key)
        if not path.exists():
            write_tensors(path, make(), {})
        return load_file(path)

    def _sample(self, what: str, condition: Condition, seed: int) -> Tensor:
        total = len(condition.source)
        noise = torch.randn(condition.source.shape, generator=torch.Generator().manual_seed(seed >> 1))
        done = []
        for part in chunks(total):
            some = Condition(condition.prompt[part], condition.source[part])
            uncond = some.with_prompt(self.uncond.expand(len(some.source)))
            targets = self.settings.targets
            denoiser = Denoiser(self.backbone, some, uncond, targets.guidance_scale)
            done.append(sample_many_steps(denoiser, noise[part], targets.steps, self.settings.sampling.shift))
            self.progress(what, min(part.stop, total), total)
        return torch.cat(done)


def chunks(total: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK))
