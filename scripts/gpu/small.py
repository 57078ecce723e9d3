"""The nano base and the toy world on the device: updates a second."""

from functools import partial
from typing import Any

import torch
from device import DEVICE, copy_rate, describe, matmul_rate, seconds_of
from entries import Entries

from collectionlora.adapters.roles import STUDENT, TEACHER, TeacherLibrary, critic_role
from collectionlora.backbones import load_backbone
from collectionlora.backbones.nano import RECOMMENDED
from collectionlora.config import Overrides, resolve
from collectionlora.distillation import Distillation
from collectionlora.runs.session import build_roles
from collectionlora.streams import EffectData, GeneralData, Streams
from collectionlora.toy.world import ToyWorld, toy_settings

GIB = 2**30


def measure_device(tiny: bool, entries: Entries) -> None:
    """What the device is, and its ceilings."""
    entries.put(**describe())
    side, size = (256, 2**20) if tiny else (8192, GIB)
    types = torch.bfloat16, torch.float32
    entries.put(matmul_flops_a_second={str(t).removeprefix("torch."): matmul_rate(side, t) for t in types})
    entries.put(
        copy_bytes_a_second={name: copy_rate(size, name == "pinned") for name in ("pageable", "pinned")}
    )


def nano_run(side: int, *layers: Overrides) -> Distillation:
    """A run over random photos of `side` pixels; its effects differ in their random teachers alone."""
    settings = resolve(RECOMMENDED, {"data": {"resolution": side}, "distill": {"effect_ratio": 1.0}}, *layers)
    backbone = load_backbone("nano", settings.model)
    ranks = {STUDENT: settings.student.rank, TEACHER: 8}
    ranks |= {critic_role(n): settings.critic.rank for n in settings.distill.rollout_steps}
    roles = build_roles(backbone, ranks, 0, settings)
    photos, names = torch.rand(16, 3, side, side) * 2 - 1, ("first", "second")
    prompt = backbone.encode_prompt(["<effect_balumo> turn the photo into a pencil sketch on old paper"])
    data = [EffectData(name, photos, photos[:, None], prompt, prompt, prompt) for name in names]
    general = GeneralData(photos, prompt.expand(len(photos)), photos, prompt)
    distill = settings.distill
    streams = Streams(data, general, seed=0, batch_size=distill.batch_size, effect_ratio=1.0)
    library = TeacherLibrary(roles, {name: roles.weights(TEACHER) for name in names})
    return Distillation(backbone, roles, library, streams, settings)


def rates(run: Distillation, rounds: int) -> dict[str, float]:
    """Updates a second of the warm start and of the distillation."""
    first = run.settings.match.updates
    return {
        "match": 1 / seconds_of(partial(run, 1), rounds),
        "distill": 1 / seconds_of(partial(run, first + 1), max(1, rounds // 4)),
    }


def measure_nano(tiny: bool, entries: Entries) -> None:
    """At two sizes, and at batches that fill a device better."""
    rounds = 1 if tiny else 40
    small: Overrides = {"match": {"batch_size": 1}, "distill": {"batch_size": 1}} if tiny else {}
    sizes: list[tuple[int, Overrides]] = [(32 if tiny else 64, small)]
    if not tiny:
        wide = {"match": {"batch_size": 48}, "distill": {"batch_size": 48}}
        sizes += [(64, wide), (128, {}), (256, {})]
    for side, layer in sizes:
        run = nano_run(side, layer)
        found: dict[str, Any] = rates(run, rounds)
        batches = {
            "match_batch": run.settings.match.batch_size,
            "distill_batch": run.settings.distill.batch_size,
        }
        name = f"{side}px-{run.settings.distill.batch_size}"
        entries.put(**{name: {**found, **batches}})
        assert run.roles.parameters(STUDENT)[0].device.type == DEVICE.type


def measure_toy(tiny: bool, entries: Entries) -> None:
    """The toy world, all of it on the device."""
    steps = 2 if tiny else 50
    world = ToyWorld(num_effects=2, base_steps=steps, teacher_steps=steps, device=str(DEVICE))
    entries.put(**rates(world.distillation(toy_settings()), 1 if tiny else 40))
