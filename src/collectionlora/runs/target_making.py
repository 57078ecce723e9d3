"""Teacher targets: samples of each teacher on its effect's photos, made once, kept in the cache.

First everything is encoded and the encoders are released, then the teachers are sampled. A cache file is
named after everything it depends on (photos, teacher file, prompt, settings), so a change makes a new one and
an interrupted run goes on with what is still missing. Several processes share the files, not the images of
one: each file's noise is its own, so it is the same whoever makes it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from collectionlora.adapters.roles import TeacherLibrary
from collectionlora.backbones.base import Backbone, Condition, Prompt, repeat_references
from collectionlora.cache import cache_key, cache_path, effect_key, reference_parts
from collectionlora.collection import MANIFEST, Collection, Effect
from collectionlora.config import Settings
from collectionlora.pictures.photos import chunks, fit, read_images, read_photo
from collectionlora.sampling import Denoiser, sample_many_steps
from collectionlora.streams import EffectData, GeneralData
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint, read_tensors, write_tensors
from collectionlora.system.progress import Progress
from collectionlora.system.shared_files import Kept, make_together


def read_references(
    collection: Collection, effect: Effect, backbone: Backbone, settings: Settings
) -> list[Tensor]:
    """An effect's reference images as the network takes them, each `[1, 3, height, width]` in [0, 1]."""
    paths, side = collection.reference_paths(effect), settings.data.resolution
    return [fit(read_photo(path), side, backbone.side_multiple) for path in paths]


def encode_for_photos(
    backbone: Backbone, texts: Sequence[str], images: Tensor, references: Sequence[Tensor] = ()
) -> Prompt:
    """The prompt of each image: one for all where all texts are the same and the base reads them alone."""
    if backbone.prompts_see_photos:
        return backbone.encode_prompt(texts, [images, *repeat_references(references, len(images))])
    return backbone.encode_prompt(texts[:1] if len(set(texts)) == 1 else texts)


class TargetMaker:
    """Makes and caches the data of one collection.

    Args:
        teachers: loads them with their network; asked only when something is sampled, after the encoders
            have been released.
    """

    def __init__(
        self,
        collection: Collection,
        backbone: Backbone,
        teachers: Callable[[], TeacherLibrary],
        settings: Settings,
        progress: Progress,
    ):
        self.collection, self.backbone, self.teachers = collection, backbone, teachers
        self.settings, self.progress = settings, progress
        self.used: dict[str, str] = {}  # fingerprints by name of all that was made or found

    def make(self, student_prompts: Mapping[str, str]) -> tuple[list[EffectData], GeneralData]:
        """All effects, and the general stream; `student_prompts` by effect."""
        effects = self.collection.effects
        encodings = [self._encode_effect(e, student_prompts[e.name]) for e in effects]
        *encoded, general = make_together([*encodings, self._encode_general()])
        self.backbone.release_encoders()
        samples = [self._sample_effect(*both) for both in zip(effects, encoded, strict=True)]
        # The bare base's answers if there is a warm start: nothing else reads them.
        answers = [self._sample_general(general)] if self.settings.match.updates else []
        sampled = make_together([*samples, *answers])
        effect_data = [
            self._effect(effect, tensors, made["targets"])
            for effect, tensors, made in zip(effects, encoded, sampled, strict=False)
        ]
        prompt, uncond = (Prompt.from_tensors(n, general) for n in ("prompt", "uncond"))
        answered = sampled[-1]["targets"] if answers else None
        return effect_data, GeneralData(general["sources"], prompt, answered, uncond)

    def _encode_effect(self, effect: Effect, student_prompt: str) -> Kept[dict[str, Tensor]]:
        photos = self.collection.photo_paths(effect)
        texts = {"teacher": effect.teacher_prompt, "student": student_prompt, "uncond": ""}
        for_each = {name: [text] * len(photos) for name, text in texts.items()}
        return self._encode(effect.name, photos, for_each, effect)

    def _encode_general(self) -> Kept[dict[str, Tensor]]:
        """Photos paired with instructions, both drawn."""
        paths, instructions = self.collection.general_photo_paths(), self.collection.general_prompts()
        rng = np.random.default_rng(int(fingerprint(*instructions, *paths), 16))
        count = self.settings.targets.general
        photos = [paths[i] for i in rng.integers(len(paths), size=count)]
        texts = [instructions[i] for i in rng.integers(len(instructions), size=count)]
        return self._encode("general", photos, {"prompt": texts, "uncond": [""] * count})

    def _encode(
        self,
        what: str,
        photos: Sequence[Path],
        texts: Mapping[str, Sequence[str]],
        effect: Effect | None = None,
    ) -> Kept[dict[str, Tensor]]:
        """Latents `sources` of photos, and prompts by name, with one text for each photo.

        Of an effect also the latents `references.0`, `references.1` and so on.
        """
        collection, backbone = self.collection, self.backbone

        def make() -> dict[str, Tensor]:
            images = read_images(photos, self.settings)
            shown = read_references(collection, effect, backbone, self.settings) if effect else []
            tensors = {"sources": backbone.encode_image(images)}
            tensors |= {f"references.{i}": backbone.encode_image(image) for i, image in enumerate(shown)}
            for name, written in texts.items():
                tensors |= encode_for_photos(backbone, written, images, shown).tensors(name)
            self.progress(f"encode {what}", len(photos), len(photos), {})
            return tensors

        seen = [*photos, *(reference_parts(collection, effect) if effect else [])]
        key = cache_key(collection, self.settings, texts, *seen)
        return self._keep(f"{what}-encoded", key, make)

    def _effect(self, effect: Effect, encoded: Mapping[str, Tensor], targets: Tensor) -> EffectData:
        teacher, student, uncond = (Prompt.from_tensors(n, encoded) for n in ("teacher", "student", "uncond"))
        references = tuple(encoded[f"references.{i}"] for i in range(len(effect.references)))
        return EffectData(effect.name, encoded["sources"], targets, teacher, student, uncond, references)

    def _sample_effect(self, effect: Effect, encoded: Mapping[str, Tensor]) -> Kept[dict[str, Tensor]]:
        sources, samples = encoded["sources"], self.settings.targets.samples
        teacher, uncond = (Prompt.from_tensors(n, encoded) for n in ("teacher", "uncond"))
        references = tuple(encoded[f"references.{i}"] for i in range(len(effect.references)))
        key = effect_key(self.collection, effect, self.settings)

        def make() -> dict[str, Tensor]:
            photo = torch.arange(len(sources)).repeat_interleave(samples)
            condition = Condition(
                teacher.of_photos(photo), sources[photo], repeat_references(references, len(photo))
            )
            with self.teachers().use(effect.name):
                targets = self._sample(effect.name, condition, uncond.of_photos(photo), int(key, 16))
            # With the sources, so that this file alone holds image pairs.
            return {"sources": sources, "targets": targets.unflatten(0, (len(sources), samples))}

        return self._keep(effect.name, key, make)

    def _sample_general(self, encoded: Mapping[str, Tensor]) -> Kept[dict[str, Tensor]]:
        """The bare base's answers."""
        sources = encoded["sources"]
        prompt, uncond = (Prompt.from_tensors(n, encoded) for n in ("prompt", "uncond"))
        instructions, photos = self.collection.general_prompts(), self.collection.general_photo_paths()
        key = cache_key(self.collection, self.settings, self.settings.targets, *instructions, *photos)

        def make() -> dict[str, Tensor]:
            photo = torch.arange(len(sources))
            condition = Condition(prompt.of_photos(photo), sources)
            with self.teachers().use(None):
                return {"targets": self._sample("general", condition, uncond.of_photos(photo), int(key, 16))}

        return self._keep("general", key, make)

    def _keep(self, name: str, key: str, make: Callable[[], dict[str, Tensor]]) -> Kept[dict[str, Tensor]]:
        self.used[name] = key
        path = cache_path(self.collection, name, key)

        def get() -> dict[str, Tensor]:
            found = read_tensors(path)
            if found is None:
                write_tensors(path, make(), {})
                # What was made may be laid out otherwise in memory, and then sums round otherwise.
                return load_file(path)
            return found[0]

        return Kept(path, get)

    def _sample(self, what: str, condition: Condition, uncond: Prompt, seed: int) -> Tensor:
        total = len(condition.source)
        noise = torch.randn(condition.source.shape, generator=torch.Generator().manual_seed(seed >> 1))
        done = []
        for part in chunks(total, self.backbone.max_batch(condition)):
            some = condition[part]
            targets = self.settings.targets
            denoiser = Denoiser(self.backbone, some, some.with_prompt(uncond[part]), targets.guidance_scale)
            done.append(sample_many_steps(denoiser, noise[part], targets.steps))
            self.progress(what, min(part.stop, total), total, {})
        samples = torch.cat(done)
        if not torch.isfinite(samples).all():
            message, hint = "samples that are not finite", "lower targets.guidance_scale or fix the teacher"
            raise UserError(self.collection.folder / MANIFEST, what, f"the teacher makes {message}", hint)
        return samples
