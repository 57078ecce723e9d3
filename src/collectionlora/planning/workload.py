"""What is planned: a base under settings, and how much of it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from collectionlora.adapters.headers import LoraSizes, read_sizes
from collectionlora.adapters.roles import STUDENT, TEACHER, critic_role, target_weights
from collectionlora.backbones import family_of
from collectionlora.collection import Collection, open_collection
from collectionlora.config import RECIPES, Overrides, Settings, replace_settings, resolve
from collectionlora.effectbench.baselines import BASELINES
from collectionlora.effectbench.running import DEFAULT_METHODS, find_adapter, split_steps, trained_methods
from collectionlora.runs.session import resolve_settings, summed_rank
from collectionlora.system.errors import UserError


@dataclass(frozen=True)
class Workload:
    """What is planned: a base under settings, and what the settings do not hold.

    Attributes:
        photos: numbers of those effects whose folders are there.
        photos_each: of each of the other effects.
        teachers: of the effects whose files are there.
        teacher_rank: of the other effects' LoRAs; by default the student's.
        methods: of `bench`.
        judged_rank: the largest rank of the finished adapters among them.
        references: the most reference images of an effect.
        devices: GPUs of all `hosts`.
        sharding: what each of several devices holds: all (`ddp`), or its share (`fsdp`).
    """

    base: str
    effects: int
    settings: Settings
    photos: tuple[int, ...] = ()
    photos_each: int = 20
    teachers: tuple[LoraSizes, ...] = ()
    teacher_rank: int | None = None
    methods: tuple[str, ...] = DEFAULT_METHODS
    judged_rank: int = 0
    references: int = 0
    devices: int = 1
    hosts: int = 1
    sharding: str = "ddp"

    def ranks(self) -> dict[str, int]:
        """The rank of every role, as a session builds them."""
        settings = self.settings
        critics = {critic_role(n): settings.critic.rank for n in settings.distill.rollout_steps}
        return {
            STUDENT: settings.student.rank,
            TEACHER: max(1, *(teacher.rank for teacher in self.all_teachers(0))),
            **critics,
        }

    @property
    def baselines(self) -> list[str]:
        """The methods that stand on an acceleration LoRA, which `bench` trains."""
        return [method for method in self.methods if method in BASELINES]

    def bench_ranks(self) -> dict[str, int]:
        """The rank of both roles of a bench."""
        ranks = self.ranks()
        student, teacher = ranks[STUDENT], ranks[TEACHER]
        if self.baselines:
            teacher = summed_rank(student, teacher, any(one.exact for one in self.teachers))
        return {STUDENT: max(student, self.judged_rank), TEACHER: teacher}

    def all_teachers(self, numbers: int) -> list[LoraSizes]:
        """The teachers of all effects; `numbers` are those of a pair of rank 1 for every module."""
        rank = self.teacher_rank or self.settings.student.rank
        others = [LoraSizes(rank, rank * numbers, 0)] * (self.effects - len(self.teachers))
        return [*self.teachers[: self.effects], *others]

    def all_photos(self) -> list[int]:
        """The number of photos of every effect."""
        return [*self.photos[: self.effects], *[self.photos_each] * (self.effects - len(self.photos))]

    def count_compositions(self, settings: Settings) -> int:
        """The number of compositions that the warm start of a run under `settings` learns."""
        return self.effects * settings.targets.compositions if settings.match.updates else 0


def find_judged_rank(collection: Collection, methods: Sequence[str]) -> int:
    """The largest rank of the finished adapters among the methods of a bench; 0 if there are none yet.

    Raises:
        UserError: there is no such method.
    """
    ranks = [0]
    for name in trained_methods(methods):
        is_student = split_steps(name)[0] == STUDENT
        path = collection.result if is_student else find_adapter(collection, name)
        with suppress(UserError):  # not there yet, or `bench` tells what is wrong with it
            ranks.append(read_sizes(path, empty_weights(collection)).rank)
    return max(ranks)


def count_photos(collection: Collection) -> tuple[int, ...]:
    """The number of each effect's photos; none of a folder that is not there yet, or holds none."""
    counts = []
    for effect in collection.effects:
        with suppress(UserError):  # `check` tells what is wrong with a folder
            counts.append(len(collection.photo_paths(effect)))
    return tuple(counts)


def empty_weights(collection: Collection) -> dict[str, Tensor]:
    """The weights that take a LoRA, by module; of a large base on the meta device."""
    base = collection.manifest.base
    return target_weights(*family_of(base).empty_network(base))


def read_teacher_sizes(collection: Collection) -> tuple[LoraSizes, ...]:
    """Of each teacher's file by its header; none of one that is not there yet."""
    sizes, shapes = [], empty_weights(collection)
    for effect in collection.effects:
        with suppress(UserError):  # `check` tells what is wrong with a file
            sizes.append(read_sizes(collection.teacher_path(effect), shapes))
    return tuple(sizes)


def refuse_runs(methods: Sequence[str]) -> None:
    """Refuse methods of `bench` that are runs of a collection.

    Raises:
        UserError: there is one.
    """
    for name in trained_methods(methods):
        if split_steps(name)[0] != STUDENT:
            raise UserError("--methods", name, "is not a method", "name a run together with its folder")


def without_sharding(settings: Settings, sharding: str) -> Settings:
    """Settings of a workload, which states the sharding itself.

    Raises:
        SettingsError: no run accepts them in shards.
    """
    if sharding == "fsdp":
        resolve(settings.model_dump(), {"model": {"sharding": "fsdp"}})
    return replace_settings(settings, model={"sharding": "none"})


def make_workload(
    collection: Collection | Path | str | None = None,
    base: str | None = None,
    effects: int | None = None,
    rank: int | None = None,
    overrides: Overrides | None = None,
    sharding: str | None = None,
    teacher_rank: int | None = None,
    photos: int | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    recipe: str = "default",
    **rest: Any,
) -> Workload:
    """A workload from a collection, or from a base alone; `rest` as in `Workload`.

    Args:
        sharding: by default what `model.sharding` says.
        teacher_rank: of all effects; by default what their files say.
        photos: of each effect; by default as many as lie in their folders.
        methods: of `bench`.
        recipe: of a base alone; a collection has its own.

    Raises:
        UserError: neither or both are given, no such collection, base or method, or an unknown sharding.
    """
    if (collection is None) == (base is None):
        raise UserError("plan", "", "needs a folder or --base, and not both", "leave one out")
    if sharding not in (None, "ddp", "fsdp"):
        raise UserError("--sharding", sharding, "is not a kind of sharding", "write ddp or fsdp")
    ranks = {"student": {"rank": rank}, "critic": {"rank": rank}} if rank else {}
    given = overrides or {}
    layer = {name: {**ranks.get(name, {}), **given.get(name, {})} for name in {*ranks, *given}}
    if collection is not None:
        collection = open_collection(collection)
        settings = resolve_settings(collection, layer)
        rest["references"] = max(len(e.references) for e in collection.effects)
        if teacher_rank is None:
            rest["teachers"] = read_teacher_sizes(collection)
        if photos is None:
            rest["photos"] = count_photos(collection)
        rest["judged_rank"] = find_judged_rank(collection, methods)
        base, effects = collection.manifest.base, effects or len(collection.effects)
        if pairs := collection.count_pairs():
            settings = replace_settings(settings, targets={"general": pairs})
    else:
        assert base is not None
        refuse_runs(methods)
        settings = resolve(family_of(base).recommended_settings(base), RECIPES[recipe], layer)
    sharding = sharding or ("fsdp" if settings.model.sharding == "fsdp" else "ddp")
    settings = without_sharding(settings, sharding)
    rest |= {"photos_each": photos} if photos else {}
    return Workload(
        base,
        effects or 50,
        settings,
        teacher_rank=teacher_rank,
        sharding=sharding,
        methods=tuple(methods),
        **rest,
    )
