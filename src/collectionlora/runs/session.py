"""From a collection folder to a run: settings, base, roles, teachers, data, in this order."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from collectionlora.adapters.lycoris import MAX_RANK
from collectionlora.adapters.merging import merge
from collectionlora.adapters.recipe import Recipe, start_file, write_adapter
from collectionlora.adapters.roles import (
    STUDENT,
    TEACHER,
    LoraWeights,
    Roles,
    TeacherLibrary,
    critic_role,
)
from collectionlora.adapters.sharding import shard
from collectionlora.backbones import family_of, load_backbone
from collectionlora.backbones.base import Backbone
from collectionlora.backbones.compilation import compile_blocks
from collectionlora.cache import base_facts, refuse_changed
from collectionlora.collection import MANIFEST, Collection
from collectionlora.config import RECIPES, Settings, SettingsError, resolve, result_settings
from collectionlora.distillation import Distillation
from collectionlora.prompting.writing import PromptWriter
from collectionlora.runs.inputs import data_facts
from collectionlora.runs.target_making import TargetMaker, read_references
from collectionlora.runs.teacher_files import mark_teachers, open_teachers
from collectionlora.streams import Streams
from collectionlora.system import processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import fingerprint, keep_earlier
from collectionlora.system.progress import Progress
from collectionlora.system.version import __version__

log = logging.getLogger(__name__)
SET = "--set"


def resolve_settings(collection: Collection, overrides: Mapping[str, Any]) -> Settings:
    """The base's recommendations, then the manifest, then `overrides`.

    Raises:
        UserError: a setting of the manifest or an override that does not exist or fit.
    """
    layers = setting_layers(collection, overrides)
    place = str(collection.folder / MANIFEST)
    try:
        resolve(*(layer for name, layer in layers.items() if name != SET))
        place = SET
        return resolve(*layers.values())
    except SettingsError as error:
        raise UserError(place, error.field, error.message, error.hint) from None


def setting_layers(collection: Collection, overrides: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Where the settings of a run come from, by name; later layers lie over earlier ones."""
    base = collection.manifest.base
    return {
        f"recommended for {base}": family_of(base).recommended_settings(base),
        f"recipe {collection.manifest.recipe}": RECIPES[collection.manifest.recipe],
        MANIFEST: collection.manifest.settings,
        SET: overrides,
    }


def check_references(collection: Collection, settings: Settings) -> None:
    """Refuse reference images where they cannot be read.

    Raises:
        UserError: the base reads one photo, or a warm start mixes effects in one batch.
    """
    place = collection.folder / MANIFEST
    for effect in collection.effects:
        if effect.references and not family_of(collection.manifest.base).reads_references:
            message = f"the base {collection.manifest.base} reads the photo alone"
            hint = "leave them out, or take Qwen-Image-Edit-2509 or 2511, Qwen-Image-2.1 or FLUX.2"
            raise UserError(place, f"effects.{effect.name}.references", message, hint)
        if effect.references and settings.match.loss == "flow" and settings.match.updates:
            message = f"flow mixes effects in a batch, and {effect.name} has references that others have not"
            raise UserError(place, "settings.match.loss", message, "write velocity")


def warn_of_untrained_steps(settings: Settings) -> None:
    """Say that the finished LoRA is used in a number of steps in which its rollouts are not trained."""
    steps, trained = settings.sampling.steps, settings.distill.rollout_steps
    if settings.distill.student_updates and steps not in trained:
        text = "sampling.steps is %d, which distill.rollout_steps %s does not train: write the same in both"
        log.warning(text, steps, list(trained))


def check_resolution(collection: Collection, settings: Settings) -> None:
    """Refuse a training size that the base cannot take.

    Raises:
        UserError: the resolution is no multiple of the base's.
    """
    side, multiple = settings.data.resolution, family_of(collection.manifest.base).side_multiple
    if side % multiple:
        field, hint = "settings.data.resolution", f"write a multiple of {multiple}"
        raise UserError(collection.folder / MANIFEST, field, f"{side} does not fit the base", hint)


def check_sharding(collection: Collection, settings: Settings) -> None:
    """Refuse batches for which sharded processes would take different numbers of forwards, and wait forever.

    Raises:
        UserError: the base is sharded, splits its batches, and one of them holds more than one photo.
    """
    base = collection.manifest.base
    if settings.model.sharding == "none" or not family_of(base).splits_batches:
        return
    for section, size in (("match", settings.match.batch_size), ("distill", settings.distill.batch_size)):
        if size and size > 1:
            message = f"is {size}, and model.sharding=fsdp needs 1: {base} splits batches by prompt length"
            hint = "write 1; distill.accumulate adds photos to an update"
            raise UserError(collection.folder / MANIFEST, f"settings.{section}.batch_size", message, hint)


def check_processes(collection: Collection, settings: Settings) -> None:
    """Refuse to train in shards alone.

    Raises:
        UserError: the base is sharded, and there is one process.
    """
    if settings.model.sharding == "fsdp" and processes.world_size() == 1:
        hint = "launch with torchrun --nproc-per-node N -m -- collectionlora ..., or set it to none"
        place = collection.folder / MANIFEST
        raise UserError(place, "settings.model.sharding", "fsdp needs several processes", hint)


def build_roles(
    backbone: Backbone, ranks: Mapping[str, int], seed: int, settings: Settings, exact: bool = False
) -> Roles:
    """LoRA roles over a base; under gradient checkpointing each block is recomputed in its forward's role.

    Args:
        exact: with room for whole changes of the teacher.
    """
    fuse = backbone.fuses_lora and settings.model.sharding == "none"
    roles = Roles(backbone.network, backbone.lora_targets, ranks, seed, fuse, backbone.dtype, exact)
    if settings.model.gradient_checkpointing:
        backbone.network.enable_gradient_checkpointing(roles.checkpoint)
    if settings.model.compile:
        compile_blocks(backbone.network, backbone.device)
    return roles


def summed_rank(student: int, teacher: int, has_exact: bool) -> int:
    """Of a slot for a teacher as pairs alone, or a student, with a LoRA of the student's rank on top."""
    return max(student, teacher, MAX_RANK if has_exact else 0) + student


class Session:
    """A collection with its base and its teachers.

    The network is loaded when the roles are first asked for: encoders and network are never needed at once.

    Args:
        with_critics: also hold a critic for each schedule length, to train.
        with_sums: leave room in the teacher slot for a LoRA with one of the student's rank on top.
    """

    def __init__(
        self, collection: Collection, settings: Settings, with_critics: bool, with_sums: bool = False
    ):
        self.collection, self.settings = collection, settings
        check_resolution(collection, settings)
        check_references(collection, settings)
        check_sharding(collection, settings)
        self.backbone = load_backbone(collection.manifest.base, settings.model)
        self.teacher_marks = mark_teachers(collection)  # of what is read now
        self.teacher_files = open_teachers(collection, self.backbone.dtype, settings)
        ranks = {STUDENT: settings.student.rank}
        # A slot has at least rank 1, also where every change is kept whole.
        ranks[TEACHER] = max(1, *(file.rank for file in self.teacher_files.values()))
        self.has_exact = any(file.exact for file in self.teacher_files.values())
        if with_sums:
            ranks[TEACHER] = summed_rank(settings.student.rank, ranks[TEACHER], self.has_exact)
        if with_critics:
            ranks |= {critic_role(n): settings.critic.rank for n in settings.distill.rollout_steps}
        self.ranks = ranks
        # Where the student begins, if not as the bare base.
        self.first_student: Callable[[], LoraWeights] | None = None
        self.writer = PromptWriter(collection, self.backbone, settings)
        self.prompts = {e.name: self.writer.propose(e).student_prompt for e in collection.effects}
        self.cache_keys: dict[str, str] = {}  # of what `make_targets` took

    @cached_property
    def roles(self) -> Roles:
        seed = self.settings.distill.seed
        return build_roles(self.backbone, self.ranks, seed, self.settings, self.has_exact)

    @cached_property
    def teachers(self) -> TeacherLibrary:
        exact = {name: file.exact for name, file in self.teacher_files.items()}
        return TeacherLibrary(self.roles, self.teacher_files, exact)

    @cached_property
    def teacher_pairs(self) -> dict[str, LoraWeights]:
        """The teachers as pairs alone, for what adds them up; all processes must ask for them at once.

        Raises:
            UserError: a pair would lose too much of a change.
        """
        sources = {effect.name: self.collection.teacher_path(effect) for effect in self.collection.effects}
        return {name: file.as_pairs(sources[name]) for name, file in self.teacher_files.items()}

    def release_network(self) -> None:
        """Free the network and all roles over it; whoever asks for them again loads them."""
        for name in ("roles", "teachers"):
            self.__dict__.pop(name, None)
        self.backbone.release_network()

    def merge_teachers(self) -> LoraWeights:
        """The mean of the teachers, as near as the student's rank comes; all processes must ask for it."""
        return merge(list(self.teacher_pairs.values()), "svd", self.settings.student.rank)

    def references(self, effect: str) -> list[Tensor]:
        """An effect's reference images, each `[1, 3, height, width]` in [0, 1]."""
        chosen = self.collection.effect(effect)
        return read_references(self.collection, chosen, self.backbone, self.settings)

    def make_targets(self, progress: Progress) -> Streams:
        """All data of the collection, from the cache where it is there; new student prompts are written.

        Raises:
            UserError: a teacher or a photo was replaced in the meantime.
        """
        if processes.is_main():
            self.writer.save()
        maker = TargetMaker(
            self.collection,
            self.backbone,
            lambda: self.teachers,
            self.release_network,
            self.settings,
            progress,
        )
        for name, mark in mark_teachers(self.collection).items():
            refuse_changed(self.collection, name, self.teacher_marks[name], mark)
        effects, general, compositions = maker.make(self.prompts, self.recipe_prompts())
        self.cache_keys = {f"cache.{name}": key for name, key in maker.used.items()}
        distill = self.settings.distill
        return Streams(
            effects,
            general,
            seed=distill.seed,
            batch_size=distill.batch_size,
            effect_ratio=distill.effect_ratio,
            route_every=distill.route_every,
            asymmetric_prompts=distill.asymmetric_prompts,
            rank=processes.rank(),
            same_stream=self.settings.model.sharding == "fsdp",
            compositions=compositions,
            composition_ratio=self.settings.match.composition_ratio,
        )

    def distillation(self, progress: Progress) -> Distillation:
        """The run itself, at its first step."""
        streams = self.make_targets(lambda what, *state: progress(f"targets {what}", *state))
        if self.first_student is not None:
            self.roles.load(STUDENT, self.first_student())
        if self.settings.model.sharding == "fsdp":
            # Only now: making targets is shared by files, so processes run different forwards.
            shard(self.roles)
        return Distillation(self.backbone, self.roles, self.teachers, streams, self.settings)

    def facts(self) -> dict[str, Any]:
        """All that the result of `distillation`, which was called before, depends on."""
        facts = distillation_facts(self.collection, self.settings)
        return facts | data_facts(self.collection, self.prompts) | self.cache_keys

    def recipe_prompts(self) -> dict[str, str]:
        """What a user of the student writes for each effect."""
        aop = self.settings.distill.asymmetric_prompts
        return {e.name: self.prompts[e.name] if aop else e.teacher_prompt for e in self.collection.effects}

    def write_result(self, run: Distillation, path: Path) -> None:
        """Write the student as one adapter that carries its recipe; all processes call it, one writes."""
        weights = run.student_weights()
        if not processes.is_main():
            return
        recipe = Recipe(
            base=self.collection.manifest.base,
            # Kernels, compiler and shards of this machine are no part of the adapter.
            model=self.settings.model.model_copy(
                update={"attention": "native", "compile": False, "sharding": "none"}
            ),
            steps=self.settings.sampling.steps,
            shift=self.settings.sampling.shift,
            sampler=self.settings.sampling.sampler,
            resolution=self.settings.data.resolution,
            effects=self.recipe_prompts(),
            references={e.name: len(e.references) for e in self.collection.effects if e.references},
            version=__version__,
        )
        with keep_earlier(path):
            write_adapter(path, weights, recipe)


def distillation_facts(collection: Collection, settings: Settings) -> dict[str, Any]:
    """What the result of a distillation depends on, beside the contents of photos and teachers.

    Raises:
        UserError: see `start_file`.
    """
    sections = ("model", "data", "student", "critic", "sampling", "targets", "match", "distill")
    effects = [effect.name for effect in collection.effects]
    weights = [effect.weight for effect in collection.effects]
    # Sharding changes no forward, but which stream the processes take.
    routing = {"model.sharding": settings.model.sharding}
    others = {"effects": effects, "weights": weights, **base_facts(collection.manifest.base)}
    if start := start_file(collection, settings):
        others["start"] = fingerprint(start)
    return result_settings(settings, sections) | routing | others


def effect_names(collection: Collection, names: Sequence[str]) -> list[str]:
    """The named effects, checked; all of them if none is named."""
    return [collection.effect(n).name for n in names] or [e.name for e in collection.effects]
