"""Teacher targets: samples of each teacher on its effect's photos, made once, kept in the cache.

First everything is encoded and the encoders are released, then the teachers are sampled. (Where prompts are
read together with the photo, compositions need both once more: the first effect's pictures.) A cache file is
named after everything it depends on (photos, teacher file, prompt, settings), so a change makes a new one and
an interrupted run goes on with what is still missing. The name is found before anything is read, and again
before the file is written: what was replaced in the meantime is refused. Several processes share the files,
not the images of one: each file's noise is its own, so it is the same whoever makes it. The general stream,
which may have thousands of photos, lies in several files. All files are mapped into memory, and read where
they are used.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from collectionlora.adapters.roles import TeacherLibrary
from collectionlora.backbones.base import Backbone, Condition, Prompt
from collectionlora.cache import (
    cache_key,
    cache_path,
    effect_key,
    reference_parts,
    refuse_changed,
    samples_key,
)
from collectionlora.collection import MANIFEST, Collection, Effect
from collectionlora.config import Settings
from collectionlora.pictures.buckets import (
    Images,
    find_buckets,
    find_images,
    gather_images,
    name_images,
    take,
)
from collectionlora.pictures.photos import chunks, read_photo, to_images
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.runs.compositions import CompositionShard, list_compositions
from collectionlora.runs.general_items import Shard, gather_shards, list_shards, reads_answers
from collectionlora.sampling import Denoiser, sample_many_steps
from collectionlora.streams import EffectData, GeneralData, sample_noise
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint, read_tensors, write_tensors
from collectionlora.system.progress import Progress
from collectionlora.system.shared_files import Kept, make_together


def read_references(
    collection: Collection, effect: Effect, backbone: Backbone, settings: Settings
) -> list[Tensor]:
    """An effect's reference images as the network takes them, each `[1, 3, height, width]` in [0, 1]."""
    sizes = WorkingSizes(settings.data.resolution, backbone.side_multiple)
    return [sizes.show(read_photo(path)) for path in collection.reference_paths(effect)]


def encode_photos(
    backbone: Backbone,
    images: Iterable[Tensor],
    texts: Mapping[str, Sequence[str]],
    references: Sequence[Tensor] = (),
) -> tuple[Images, dict[str, Prompt]]:
    """Latents of images, and prompts by name; images are taken one after the other and none is kept.

    Args:
        images: each `[1, 3, height, width]` in [0, 1].
        texts: by name, one for each image. A prompt stands for all images where all its texts are the same
            and the base reads them alone.
        references: shown beside every image, each like an image.
    """
    latents, rows = [], {name: list[Prompt]() for name in texts}
    for index, image in enumerate(images):
        latents.append(backbone.encode_image(image)[0])
        if backbone.prompts_see_photos:
            for name, written in texts.items():
                rows[name].append(backbone.encode_prompt([written[index]], [image, *references]))
    if backbone.prompts_see_photos:
        return gather_images(latents), {name: Prompt.cat(read) for name, read in rows.items()}
    alone = {name: written[:1] if len(set(written)) == 1 else written for name, written in texts.items()}
    return gather_images(latents), {name: backbone.encode_prompt(each) for name, each in alone.items()}


class TargetMaker:
    """Makes and caches the data of one collection.

    Args:
        teachers: loads them with their network; asked only when something is sampled, after the encoders
            have been released.
        release_network: frees both.
    """

    def __init__(
        self,
        collection: Collection,
        backbone: Backbone,
        teachers: Callable[[], TeacherLibrary],
        release_network: Callable[[], None],
        settings: Settings,
        progress: Progress,
    ):
        self.collection, self.backbone = collection, backbone
        self.teachers, self.release_network = teachers, release_network
        self.settings, self.progress = settings, progress
        self.used: dict[str, str] = {}  # fingerprints by name of all that was made or found
        # Found once: a file that changes later must not give its key to what was made before.
        self.effect_keys = {e.name: effect_key(collection, e, settings) for e in collection.effects}
        # Not of the items: a line more leaves the answers to the others as they are.
        self.general_seed = int(samples_key(collection, settings), 16)
        self.composition_seed = int(samples_key(collection, settings, "composition"), 16)

    def make(
        self, student_prompts: Mapping[str, str], written: Mapping[str, str]
    ) -> tuple[list[EffectData], GeneralData, GeneralData | None]:
        """All effects, the general stream, and compositions if there are any.

        Args:
            student_prompts: by effect.
            written: by effect, what a user of the student writes; without AOP the teachers' prompts.
        """
        effects = self.collection.effects
        shards = list_shards(self.collection, self.settings)
        composed = list_compositions(self.collection, self.settings, written)
        answer_keys = [self._answer_key(shard) for shard in shards]
        encodings = [self._encode_effect(e, student_prompts[e.name]) for e in effects]
        items = [self._encode_items("general", shard) for shard in shards]
        items += [self._encode_items("composition", shard) for shard in composed]
        encoded = make_together([*encodings, *items])
        encoded, general = encoded[: len(effects)], encoded[len(effects) :]
        general, compositions = general[: len(shards)], general[len(shards) :]
        self.backbone.release_encoders()
        samples = [self._sample_effect(*both) for both in zip(effects, encoded, strict=True)]
        answers = (
            map(self._sample_general, shards, general, answer_keys) if reads_answers(self.settings) else ()
        )
        sampled = make_together([*samples, *answers])
        effect_data = [
            self._effect(effect, tensors, find_images("targets", made))
            for effect, tensors, made in zip(effects, encoded, sampled, strict=False)
        ]
        for effect in effects:  # what lay in the cache as well is of the files that are there now
            self._refuse_other_files(effect)
        general_data = gather_shards(general, sampled[len(effects) :], self.general_seed)
        if not composed:
            return effect_data, general_data, None
        stacked = self._sample_compositions(composed, {data.name: data for data in effect_data})
        return effect_data, general_data, gather_shards(compositions, stacked, self.composition_seed)

    def _sample_compositions(
        self, shards: Sequence[CompositionShard], effects: Mapping[str, EffectData]
    ) -> list[dict[str, Tensor]]:
        """`targets` of each shard; first the teachers' prompts are read beside the pictures they are for."""
        prompts: list[dict[str, Tensor]] = [{} for _ in shards]
        if self.backbone.prompts_see_photos:
            prompts = make_together([self._encode_pictures(shard, effects) for shard in shards])
            self.backbone.release_encoders()
        pairs = zip(shards, prompts, strict=True)
        return make_together([self._sample_composition(shard, effects, read) for shard, read in pairs])

    def _refuse_other_files(self, effect: Effect) -> None:
        now = effect_key(self.collection, effect, self.settings)
        refuse_changed(self.collection, effect.name, self.effect_keys[effect.name], now)

    def _encode_effect(self, effect: Effect, student_prompt: str) -> Kept[dict[str, Tensor]]:
        photos = self.collection.photo_paths(effect)
        texts = {"teacher": effect.teacher_prompt, "student": student_prompt, "uncond": ""}
        for_each = {name: [text] * len(photos) for name, text in texts.items()}
        return self._encode(effect.name, photos, for_each, effect)

    def _encode_items(self, name: str, shard: Shard) -> Kept[dict[str, Tensor]]:
        texts = {"prompt": shard.prompts, "uncond": [""] * len(shard.prompts)}
        return self._encode(name, shard.photos, texts, shard=shard)

    def _encode(
        self,
        what: str,
        photos: Sequence[Path],
        texts: Mapping[str, Sequence[str]],
        effect: Effect | None = None,
        shard: Shard | None = None,
    ) -> Kept[dict[str, Tensor]]:
        """Latents `sources` of photos, and prompts by name, with one text for each photo.

        Of an effect also the latents `references.0`, `references.1` and so on.
        """
        collection, backbone = self.collection, self.backbone
        first, total = (shard.first, shard.total) if shard else (0, len(photos))

        def read_images() -> Iterator[Tensor]:
            sizes = WorkingSizes.of(self.settings.data, backbone.side_multiple)
            for done, path in enumerate(photos, 1):
                yield to_images([sizes.read(path)])
                self.progress(f"encode {what}", first + done, total, {})

        def make() -> dict[str, Tensor]:
            shown = read_references(collection, effect, backbone, self.settings) if effect else []
            sources, prompts = encode_photos(backbone, read_images(), texts, shown)
            tensors = name_images("sources", sources)
            tensors |= {f"references.{i}": backbone.encode_image(image) for i, image in enumerate(shown)}
            for name, prompt in prompts.items():
                tensors |= prompt.tensors(name)
            refuse_changed(collection, what, key, find_key())
            return tensors

        def find_key() -> str:
            seen = [*photos, *(reference_parts(collection, effect) if effect else [])]
            return cache_key(collection, self.settings, texts, *seen)

        key = find_key()
        return self._keep(f"{what}-encoded", key, make, shard.number if shard else 0)

    def _effect(self, effect: Effect, encoded: Mapping[str, Tensor], targets: Images) -> EffectData:
        teacher, student, uncond = (Prompt.from_tensors(n, encoded) for n in ("teacher", "student", "uncond"))
        references = tuple(encoded[f"references.{i}"] for i in range(len(effect.references)))
        sources = find_images("sources", encoded)
        seed = int(self.effect_keys[effect.name], 16)
        return EffectData(
            effect.name, sources, targets, teacher, student, uncond, references, seed, effect.weight
        )

    def _sample_effect(self, effect: Effect, encoded: Mapping[str, Tensor]) -> Kept[dict[str, Tensor]]:
        sources = find_images("sources", encoded)
        data = self._effect(effect, encoded, sources)

        def make() -> dict[str, Tensor]:
            def read(photo: Tensor) -> tuple[Condition, Prompt]:
                return data.condition(data.teacher_prompt, photo), data.uncond.of_photos(photo)

            with self.teachers().use(effect.name):
                samples = self.settings.targets.samples
                total = samples * len(sources)
                targets = self._sample(effect.name, sources, read, samples, data.seed, 0, total)
            self._refuse_other_files(effect)
            # With the sources, so that this file alone holds image pairs.
            return name_images("sources", sources) | name_images("targets", targets)

        return self._keep(effect.name, self.effect_keys[effect.name], make)

    def _answer_key(self, shard: Shard) -> str:
        seen = [shard.first, *shard.prompts, *shard.photos]
        return samples_key(self.collection, self.settings, *seen)

    def _sample_general(
        self, shard: Shard, encoded: Mapping[str, Tensor], key: str
    ) -> Kept[dict[str, Tensor]]:
        """The bare base's answers; `key` was found before the photos were read."""
        sources = find_images("sources", encoded)
        prompt, uncond = (Prompt.from_tensors(n, encoded) for n in ("prompt", "uncond"))

        def make() -> dict[str, Tensor]:
            def read(photo: Tensor) -> tuple[Condition, Prompt]:
                return Condition(prompt.of_photos(photo), take(sources, photo)), uncond.of_photos(photo)

            with self.teachers().use(None):
                seed, first, total = self.general_seed, shard.first, shard.total
                answers = self._sample("general", sources, read, 1, seed, first, total)
            refuse_changed(self.collection, "general", key, self._answer_key(shard))
            return name_images("targets", gather_images([answer[0] for answer in answers]))

        return self._keep("general", key, make, shard.number)

    def _encode_pictures(
        self, shard: CompositionShard, effects: Mapping[str, EffectData]
    ) -> Kept[dict[str, Tensor]]:
        """The second effect's prompts, each read beside a picture of a first effect."""
        texts = {"teacher": shard.second.teacher_prompt, "uncond": ""}
        seen = [(effects[name].seed, place) for name, place in shard.below]
        key = samples_key(self.collection, self.settings, *texts.values(), *seen)

        def make() -> dict[str, Tensor]:
            self.release_network()  # it and the encoders never share the device
            read = {name: list[Prompt]() for name in texts}
            for done, (effect, place) in enumerate(shard.below, 1):
                picture = self.backbone.decode(effects[effect].targets[place][:1])
                for name, text in texts.items():
                    read[name].append(self.backbone.encode_prompt([text], [picture]))
                self.progress("encode pictures", shard.first + done, shard.total, {})
            prompts = {name: Prompt.cat(rows) for name, rows in read.items()}
            return {key: value for name in prompts for key, value in prompts[name].tensors(name).items()}

        return self._keep("composition-pictures", key, make, shard.number)

    def _sample_composition(
        self, shard: CompositionShard, effects: Mapping[str, EffectData], prompts: dict[str, Tensor]
    ) -> Kept[dict[str, Tensor]]:
        """The second effect's samples on the first effects' pictures.

        Args:
            prompts: of `_encode_pictures`; empty where prompts are read alone, as the effect's own.
        """
        second = effects[shard.second.name]
        teacher, uncond = second.teacher_prompt, second.uncond
        if prompts:
            teacher, uncond = (Prompt.from_tensors(name, prompts) for name in ("teacher", "uncond"))
        seen = [second.seed, shard.first, *((effects[name].seed, place) for name, place in shard.below)]
        key = samples_key(self.collection, self.settings, *seen)

        def make() -> dict[str, Tensor]:
            sources = gather_images([effects[name].targets[place][0] for name, place in shard.below])

            def read(photo: Tensor) -> tuple[Condition, Prompt]:
                return Condition(teacher.of_photos(photo), take(sources, photo)), uncond.of_photos(photo)

            with self.teachers().use(second.name):
                seed, first, total = self.composition_seed, shard.first, shard.total
                answers = self._sample("composition", sources, read, 1, seed, first, total)
            return name_images("targets", gather_images([answer[0] for answer in answers]))

        return self._keep("composition", key, make, shard.number)

    def _keep(
        self, name: str, key: str, make: Callable[[], dict[str, Tensor]], number: int = 0
    ) -> Kept[dict[str, Tensor]]:
        """A file of the cache, or the one of a number, beginning with 0, among several of a name."""
        self.used[name] = fingerprint(self.used[name], key) if number else key
        path = cache_path(self.collection, f"{name}-{number}" if number else name, key)

        def get() -> dict[str, Tensor]:
            found = read_tensors(path)
            if found is None:
                write_tensors(path, make(), {})
                # What was made may be laid out otherwise in memory, and then sums round otherwise.
                return load_file(path)
            return found[0]

        return Kept(path, get)

    def _sample(
        self,
        what: str,
        sources: Images,
        read: Callable[[Tensor], tuple[Condition, Prompt]],
        samples: int,
        seed: int,
        first: int,
        total: int,
    ) -> Images:
        """For each source `samples` images `[samples, C, H, W]` of its size, by the teacher in use.

        Args:
            read: the condition and the empty prompts of the photos at `[B]`, which have one size.
            seed: with an image's position among all and the sample's number it gives the noise.
            first: the position of the first source among all; `total` images are made in the end.
        """
        made: dict[int, Tensor] = {}
        for bucket in find_buckets(sources):
            done, photo = [], torch.tensor(bucket).repeat_interleave(samples)
            condition, uncond = read(photo)
            origins = product([seed], [first + position for position in bucket], range(samples))
            noise = torch.stack([sample_noise(origin, condition.source.shape[1:]) for origin in origins])
            for part in chunks(len(photo), self.backbone.max_batch(condition)):
                some, targets = condition[part], self.settings.targets
                denoiser = Denoiser(
                    self.backbone, some, some.with_prompt(uncond[part]), targets.guidance_scale
                )
                done.append(sample_many_steps(denoiser, noise[part], targets.steps))
                self.progress(what, first + samples * len(made) + part.stop, total, {})
            made |= zip(bucket, torch.cat(done).split(samples), strict=True)
        if not all(torch.isfinite(image).all() for image in made.values()):
            message, hint = "samples that are not finite", "lower targets.guidance_scale or fix the teacher"
            raise UserError(self.collection.folder / MANIFEST, what, f"the teacher makes {message}", hint)
        return gather_images([made[position] for position in range(len(sources))])
