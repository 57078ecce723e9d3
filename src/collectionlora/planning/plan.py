"""What a distillation needs, before anything is loaded: parameters, bytes, forwards; which devices it fits.

The weights are counted. Activations are not estimated by a formula of their own: the real student and critic
updates run over a network on the meta device, which has shapes and no memory, and every tensor that they make
is tallied. Memory grows by the same amount with each further like block, so that two shallow networks tell
the deep one (docs/planning.md).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from collectionlora.adapters.roles import STUDENT, TEACHER, TeacherLibrary, critic_role, target_weights
from collectionlora.backbones import family_of
from collectionlora.backbones.base import Backbone
from collectionlora.collection import Collection
from collectionlora.config import Settings, replace_settings, resolve
from collectionlora.distillation import Distillation, Share, Simulation
from collectionlora.flow import few_step_sigmas
from collectionlora.planning.memory import MemoryTally, flash_on_meta
from collectionlora.runs.session import build_roles, resolve_settings
from collectionlora.streams import Batch, Streams
from collectionlora.system.errors import UserError

GIB = 2**30
# Name -> memory in GiB, of which a share and a part are kept for the CUDA context and fragmentation.
DEVICES = {
    "RTX 4090 24 GB": 24,
    "RTX 5090 32 GB": 32,
    "L40S/A6000 48 GB": 48,
    "A100/H100 80 GB": 80,
    "H200 141 GB": 140,
}
RESERVED_SHARE, RESERVED_GIB = 0.04, 1.0
WHOLE_BYTES = {"float32": 4.0, "bfloat16": 2.0}
# Packed weight, and its scales: nf4 a byte for 64 weights and a float for 256 of those; int8 a float a row.
PACKED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
SHALLOW = 2


@dataclass(frozen=True)
class Workload:
    """What is planned: a base under settings, and what the settings do not hold.

    Attributes:
        photos: of each effect.
        teacher_rank: the largest rank of the effects' LoRAs.
        references: the most reference images of an effect.
        sharding: what each of several devices holds: all (`ddp`), or its share (`fsdp`).
    """

    base: str
    effects: int
    settings: Settings
    photos: int = 20
    teacher_rank: int | None = None
    references: int = 0
    devices: int = 1
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


def make_workload(
    folder: Path | None,
    base: str | None,
    effects: int | None,
    rank: int | None,
    overrides: Mapping[str, Mapping[str, Any]],
    sharding: str | None = None,
    **rest: Any,
) -> Workload:
    """A workload from a collection's folder, or from a base alone; `rest` as in `Workload`.

    Args:
        sharding: by default what `model.sharding` says.

    Raises:
        UserError: neither or both are given, no such collection or base, or an unknown sharding.
    """
    if (folder is None) == (base is None):
        raise UserError("plan", "", "needs a folder or --base, and not both", "leave one out")
    if sharding not in (None, "ddp", "fsdp"):
        raise UserError("--sharding", sharding, "is no sharding", "write ddp or fsdp")
    ranks = {"student": {"rank": rank}, "critic": {"rank": rank}} if rank else {}
    layer = {name: {**ranks.get(name, {}), **overrides.get(name, {})} for name in {*ranks, *overrides}}
    if folder is not None:
        collection = Collection.load(folder)
        settings = resolve_settings(collection, layer)
        rest["references"] = max(len(e.references) for e in collection.effects)
        base, effects = collection.manifest.base, effects or len(collection.effects)
    else:
        assert base is not None
        settings = resolve(family_of(base).recommended_settings(base), layer)
    sharding = sharding or ("fsdp" if settings.model.sharding == "fsdp" else "ddp")
    settings = replace_settings(settings, model={"sharding": "none"})  # stated once, in the workload
    return Workload(base, effects or 50, settings, sharding=sharding, **rest)


def count_forwards(settings: Settings) -> tuple[int, int]:
    """(forwards, backwards) of one sample in one student update of the effect stream, guidance counted twice.

    With `critic_samples = "simulated"` simulations stop at a random step: this is the most.
    """
    distill = settings.distill
    weights = distill.backward_weight, distill.target_weight, distill.anchor_weight
    backward, target, anchor = (int(max(weight.start, weight.end) > 0) for weight in weights)
    simulations = 1 + (distill.student_update_every if distill.critic_samples == "simulated" else 0)
    critic_and_teacher = 1 + (1 if settings.distill.guidance_scale == 1 else 2)
    learning = backward + target + anchor + distill.student_update_every
    rollout = simulations * max(distill.rollout_steps)
    return rollout + (backward + target) * critic_and_teacher + learning, learning


def base_bytes(network: nn.Module, targets: tuple[str, ...], settings: Settings) -> int:
    """Bytes of the frozen base; quantised are the blocks' linear layers that carry LoRA."""
    whole = WHOLE_BYTES[settings.model.dtype]
    total = whole * sum(p.numel() for p in network.parameters())
    kind = settings.model.quantization
    if kind != "none":
        for name, weight in target_weights(network, targets).items():
            if "transformer_blocks." in name:
                scales = 4 * len(weight) if kind == "int8" else 0
                total += weight.numel() * (PACKED_BYTES[kind] - whole) + scales
    return round(total)


def gathered_bytes(network: nn.Module, weights: int, gradient: int) -> int:
    """What sharding makes whole at a time, in bytes.

    The running block and the next one; in backward a block's gradient twice, as it comes and as it is sent.

    Args:
        weights: bytes of all that is gathered: base, student and critics.
        gradient: bytes of the largest role's.
    """
    stacks = (m for m in network.children() if isinstance(m, nn.ModuleList))
    largest = max(sum(p.numel() for p in block.parameters()) for stack in stacks for block in stack)
    return 2 * round((weights + gradient) * largest / sum(p.numel() for p in network.parameters()))


class TalliedRun(Distillation):
    """A run in which each backward is a phase of a tally."""

    tally: MemoryTally

    def backward(self, loss: Tensor) -> None:
        self.tally.begin_phase()
        super().backward(loss)


def empty_run(workload: Workload, backbone: Backbone, tally: MemoryTally) -> tuple[TalliedRun, Batch]:
    """A run on the meta device as its second step finds it: gradients and moments are there."""
    settings = workload.settings
    with torch.device("meta"):
        roles = build_roles(backbone, workload.ranks(), 0, settings)
        shapes = backbone.shapes(settings.data.resolution)
        condition = shapes.empty_condition(settings.distill.batch_size, workload.references)
        teachers = TeacherLibrary(roles, {"effect": roles.weights(TEACHER)})
        batch = Batch("effect", torch.empty_like(condition.source), condition, condition, condition)
    run = TalliedRun(backbone, roles, teachers, cast(Streams, None), settings)
    run.tally = tally
    for role, optimizer in run.optimizers.items():
        for parameter in roles.parameters(role):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return run, batch


def step_peaks(workload: Workload, depths: Mapping[str, int]) -> list[int]:
    """The most bytes in each phase of a step, beyond what is there at its start.

    A phase is a call of the network, or a backward with the optimizer's update.
    """
    tally = MemoryTally()
    with tally, flash_on_meta():
        family, model = family_of(workload.base), workload.settings.model
        backbone = family.without_weights(workload.base, model, depths)
        run, batch = empty_run(workload, backbone, tally)
        backbone.network.register_forward_pre_hook(lambda *_: tally.begin_phase())
        critic, generator = run.critics[0], torch.Generator()
        first = torch.zeros(len(batch.target), dtype=torch.int64)
        simulation = Simulation(few_step_sigmas(1), [batch.target], first, batch.target)
        share = Share(cast(Streams, None), batch, generator, simulation)
        peaks = []
        for update in (run.update_student, run.update_critic):  # each begins without the other's gradients
            start, setup = tally.live, len(tally.peaks)
            tally.begin_phase()
            update([share], critic, 0.0)
            peaks += [peak - start for peak in tally.peaks[setup:]]
    return peaks


@lru_cache
def activation_bytes(workload: Workload) -> int:
    """The most bytes in a step beyond weights, gradients and moments: what autograd saves, and workspace.

    Blocks of a stack are alike, so each phase's peak is linear in the number of each: measured on shallow
    networks, carried to the true depth.
    """
    stacks = family_of(workload.base).block_stacks(workload.base)
    shallow = {name: min(SHALLOW, depth) for name, depth in stacks.items()}
    first = step_peaks(workload, shallow)
    peaks = list(first)
    for name, depth in stacks.items():
        if depth > SHALLOW:
            deeper = step_peaks(workload, {**shallow, name: SHALLOW + 1})
            more = depth - SHALLOW
            peaks = [p + more * (d - f) for p, d, f in zip(peaks, deeper, first, strict=True)]
    return max(peaks)


def step_of(workload: Workload) -> Workload:
    """The same for all requests whose steps make the same tensors."""
    model = workload.settings.model.model_copy(update={"quantization": "none"})
    settings = workload.settings.model_copy(update={"model": model})
    return replace(workload, settings=settings, effects=1, photos=1, devices=1, sharding="ddp")


def check(workload: Workload, backbone: Backbone) -> None:
    """Refuse what no run could be.

    Raises:
        UserError: the resolution does not fit the base, or a sharding has nothing to share.
    """
    side, multiple = workload.settings.data.resolution, backbone.side_multiple
    if side % multiple:
        hint = f"write a multiple of {multiple}"
        raise UserError("--set", "data.resolution", f"{side} does not fit the base", hint)
    if workload.sharding == "fsdp" and not family_of(workload.base).block_stacks(workload.base):
        raise UserError("--sharding", "fsdp", "the nano base is too small to share", "leave it out")
    if workload.sharding == "fsdp" and workload.settings.model.quantization != "none":
        raise UserError("--sharding", "fsdp", "packed weights are not sharded", "use ddp or no quantization")


def cache_bytes(workload: Workload, backbone: Backbone) -> int:
    """Disk for latents and encoded prompts in float32: three texts a photo of an effect, two in general."""
    shapes, targets = backbone.shapes(workload.settings.data.resolution), workload.settings.targets
    prompt = 4 * math.prod(shapes.tokens) + 4 * (shapes.pooled or 0) + shapes.tokens[0]
    latents, photos = 4 * math.prod(shapes.latents), workload.photos
    texts = 3 * (photos if backbone.prompts_see_photos else 1)
    effect = (2 + targets.samples) * photos * latents + texts * prompt
    unconditional = targets.general if backbone.prompts_see_photos else 1
    general = targets.general * (2 * latents + prompt) + unconditional * prompt
    return workload.effects * effect + general


def fits(size: int, device: str) -> bool:
    """Whether bytes fit a device, with room for the CUDA context and fragmentation."""
    return size <= (DEVICES[device] * (1 - RESERVED_SHARE) - RESERVED_GIB) * GIB


def plan(workload: Workload, step: Workload | None = None) -> dict[str, Any]:
    """All numbers of a workload; sizes in bytes, `fits` by device.

    Args:
        step: a workload whose step makes at least the tensors of this one's, if that one is tallied already.

    Raises:
        UserError: no such base, or numbers that do not fit it.
    """
    settings, ranks, family = workload.settings, workload.ranks(), family_of(workload.base)
    backbone = family.without_weights(workload.base, settings.model, {})
    network, targets = backbone.network, backbone.lora_targets
    check(workload, backbone)
    weights = list(target_weights(network, targets).values())
    ends = sum(weight.shape[0] + weight[0].numel() for weight in weights)
    loras = {role: 4 * rank * ends for role, rank in ranks.items()}
    trained = sum(size for role, size in loras.items() if role != TEACHER)
    largest = max(size for role, size in loras.items() if role != TEACHER)
    # Gradients of one role at a time, two moments of each; the student's moving average.
    optimizer = largest + 2 * trained + loras[STUDENT]
    base = base_bytes(network, targets, settings)
    devices = workload.devices if workload.sharding == "fsdp" else 1

    # On a GPU, AdamW's lists hold the roots of one role's second moments, when the activations are gone.
    activations = max(activation_bytes(step or step_of(workload)), largest // devices)
    if settings.model.quantization != "none":  # one layer at a time is unpacked
        activations += round(WHOLE_BYTES[settings.model.dtype] * max(w.numel() for w in weights))
    gathered = start = 0
    if workload.sharding == "fsdp":
        gathered = gathered_bytes(network, base + trained, largest)
        start = base + sum(loras.values())
    shared = base + trained + optimizer  # all but the teacher slot
    total = -(-shared // devices) + loras[TEACHER] + gathered + activations
    forwards, backwards = count_forwards(settings)
    parameters = family.encoder_parameters(workload.base)
    encoders = parameters and round(parameters * WHOLE_BYTES[settings.model.dtype])
    return {
        "base_parameters": sum(p.numel() for p in network.parameters()),
        "base_bytes": base,
        "lora_modules": len(weights),
        "lora_parameters": ranks[STUDENT] * ends,
        "lora_bytes": sum(loras.values()),
        "optimizer_bytes": optimizer,
        "activation_bytes": activations,
        "gathered_bytes": gathered,
        "total_bytes_per_device": total,
        "start_bytes": start,
        "encoding_bytes": encoders and base + sum(loras.values()) + encoders,
        "reference_layout_bytes": total + 2 * base,
        "forwards_per_student_update": forwards,
        "backwards_per_student_update": backwards,
        "images_per_student_update": settings.distill.batch_size * workload.devices,
        "teacher_library_bytes": workload.effects * loras[TEACHER],
        "cache_bytes": cache_bytes(workload, backbone),
        "adapter_bytes": 2 * ranks[STUDENT] * ends,
        "fits": {device: fits(max(total, start), device) for device in DEVICES},
    }
