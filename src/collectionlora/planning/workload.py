"""What is planned: a base under settings, and how much of it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collectionlora.adapters.formats import count_exact
from collectionlora.adapters.roles import STUDENT, TEACHER, critic_role, target_weights
from collectionlora.backbones import family_of
from collectionlora.collection import Collection, open_collection
from collectionlora.config import Settings, replace_settings, resolve
from collectionlora.runs.session import resolve_settings
from collectionlora.system.errors import UserError


@dataclass(frozen=True)
class Workload:
    """What is planned: a base under settings, and what the settings do not hold.

    Attributes:
        photos: of each effect.
        teacher_rank: the largest rank of the effects' LoRAs.
        exact: numbers of the whole changes of each effect's teacher; nothing where no file is known.
        references: the most reference images of an effect.
        devices: GPUs of all `hosts`.
        sharding: what each of several devices holds: all (`ddp`), or its share (`fsdp`).
    """

    base: str
    effects: int
    settings: Settings
    photos: int = 20
    teacher_rank: int | None = None
    exact: tuple[int, ...] = ()
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
            TEACHER: self.teacher_rank or settings.student.rank,
            **critics,
        }


def count_exact_numbers(collection: Collection) -> tuple[int, ...]:
    """The numbers of each teacher's whole changes, by its header; none of a file that is not there yet."""
    base, counts = collection.manifest.base, []
    shapes = target_weights(*family_of(base).empty_network(base))
    for effect in collection.effects:
        with suppress(UserError):  # `check` tells what is wrong with a file
            counts.append(count_exact(collection.teacher_path(effect), shapes))
    return tuple(counts)


def make_workload(
    collection: Collection | Path | None,
    base: str | None,
    effects: int | None,
    rank: int | None,
    overrides: Mapping[str, Mapping[str, Any]],
    sharding: str | None = None,
    **rest: Any,
) -> Workload:
    """A workload from a collection, or from a base alone; `rest` as in `Workload`.

    Args:
        sharding: by default what `model.sharding` says.

    Raises:
        UserError: neither or both are given, no such collection or base, or an unknown sharding.
    """
    if (collection is None) == (base is None):
        raise UserError("plan", "", "needs a folder or --base, and not both", "leave one out")
    if sharding not in (None, "ddp", "fsdp"):
        raise UserError("--sharding", sharding, "is not a kind of sharding", "write ddp or fsdp")
    ranks = {"student": {"rank": rank}, "critic": {"rank": rank}} if rank else {}
    layer = {name: {**ranks.get(name, {}), **overrides.get(name, {})} for name in {*ranks, *overrides}}
    if collection is not None:
        collection = open_collection(collection)
        settings = resolve_settings(collection, layer)
        rest["references"] = max(len(e.references) for e in collection.effects)
        rest["exact"] = count_exact_numbers(collection)
        base, effects = collection.manifest.base, effects or len(collection.effects)
        if pairs := collection.count_pairs():
            settings = replace_settings(settings, targets={"general": pairs})
    else:
        assert base is not None
        settings = resolve(family_of(base).recommended_settings(base), layer)
    sharding = sharding or ("fsdp" if settings.model.sharding == "fsdp" else "ddp")
    settings = replace_settings(settings, model={"sharding": "none"})  # stated once, in the workload
    return Workload(base, effects or 50, settings, sharding=sharding, **rest)
