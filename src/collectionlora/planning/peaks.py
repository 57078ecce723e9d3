"""Peaks of memory, tallied on the meta device: real updates and forwards over shapes without values.

Memory grows by the same amount with each further like block, so that two shallow networks tell the deep one
(docs/planning.md).
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from math import prod
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from collectionlora.adapters.merged import Merged
from collectionlora.adapters.roles import STUDENT, TEACHER, Roles, TeacherLibrary
from collectionlora.backbones import family_of
from collectionlora.backbones.base import Backbone, Condition
from collectionlora.config import DistillSettings, replace_settings
from collectionlora.distillation import Distillation, Share, Simulation
from collectionlora.flow import few_step_sigmas
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.planning.memory import MemoryTally, flash_on_meta
from collectionlora.planning.workload import Workload
from collectionlora.runs.session import build_roles
from collectionlora.runs.teaching import EncodedPairs, Teaching
from collectionlora.sampling import Denoiser
from collectionlora.streams import Batch, Streams

SHALLOW = 2


class TalliedRun(Distillation):
    """A run in which each backward is a phase of a tally."""

    tally: MemoryTally

    def backward(self, loss: Tensor) -> None:
        self.tally.begin_phase()
        super().backward(loss)


def working_sizes(workload: Workload, backbone: Backbone) -> list[tuple[int, int]]:
    """Heights and widths of all photos that the workload may meet, the one with the most pixels first."""
    sizes = WorkingSizes.of(workload.settings.data, backbone.side_multiple).list_all()
    return sorted(sizes, key=prod, reverse=True)


def load_empty(workload: Workload, depths: Mapping[str, int]) -> Backbone:
    """The base without weights, its stacks of blocks as deep as `depths` says."""
    return family_of(workload.base).without_weights(workload.base, workload.settings.model, depths)


def empty_roles(workload: Workload, backbone: Backbone, ranks: Mapping[str, int]) -> Roles:
    """LoRAs on the meta device."""
    with torch.device("meta"):
        return build_roles(backbone, ranks, 0, workload.settings)


def empty_run(
    workload: Workload, backbone: Backbone, roles: Roles, tally: MemoryTally
) -> tuple[TalliedRun, Batch]:
    """A run on the meta device as its second step finds it: gradients and moments are there."""
    settings = workload.settings
    with torch.device("meta"):
        shapes = backbone.shapes(working_sizes(workload, backbone)[0])
        condition = shapes.empty_condition(settings.distill.batch_size, workload.references)
        batch = Batch("effect", torch.empty_like(condition.source), condition, condition, condition)
    # In a run the teachers wait in host memory: here an empty one, which adds nothing.
    run = TalliedRun(backbone, roles, TeacherLibrary(roles, {"effect": {}}), cast(Streams, None), settings)
    run.tally = tally
    for role, optimizer in run.optimizers.items():
        for parameter in roles.parameters(role):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return run, batch


def empty_shares(workload: Workload, batch: Batch) -> list[Share]:
    """A step's shares, simulated already; what one of several leaves behind is there while the next runs."""
    first = torch.zeros(len(batch.target), dtype=torch.int64)
    simulation = Simulation(few_step_sigmas(1), [batch.target], first, batch.target)
    share = Share(cast(Streams, None), batch, torch.Generator(), simulation)
    return [share] * min(workload.settings.distill.accumulate, 2)


def step_peaks(workload: Workload, depths: Mapping[str, int]) -> list[int]:
    """The most bytes in each phase of a step, beyond what is there at its start.

    A phase is a call of the network, or a backward with the optimizer's update.
    """
    tally = MemoryTally()
    with tally, flash_on_meta():
        backbone = load_empty(workload, depths)
        run, batch = empty_run(workload, backbone, empty_roles(workload, backbone, workload.ranks()), tally)
        backbone.network.register_forward_pre_hook(lambda *_: tally.begin_phase())
        shares, peaks = empty_shares(workload, batch), []
        for update in (run.update_student, run.update_critic):  # each begins without the other's gradients
            start, setup = tally.live, len(tally.peaks)
            tally.begin_phase()
            update(shares, run.critics[0], 0.0)
            peaks += [peak - start for peak in tally.peaks[setup:]]
    return peaks


def most_at_once(workload: Workload, backbone: Backbone) -> Condition:
    """As many images as a sampler takes at once, of the size of which these have the most pixels."""
    conditions = []
    for size in working_sizes(workload, backbone):
        shapes = backbone.shapes(size)
        batch = backbone.max_batch(shapes.empty_condition(1, workload.references))
        conditions.append(shapes.empty_condition(batch, workload.references))
    return max(conditions, key=lambda condition: condition.source.numel())


def begin(denoiser: Denoiser, noise: Tensor) -> None:
    """The first steps of a trajectory: what the first one keeps is there in the second."""
    denoiser.begin_trajectory()
    for _ in range(2):
        denoiser.velocity(noise, 1.0)


def sample_as_teacher(workload: Workload, backbone: Backbone, roles: Roles | Merged) -> None:
    """Guided forwards of as many images as they take at once."""
    condition, scale = most_at_once(workload, backbone), workload.settings.targets.guidance_scale
    denoiser = Denoiser(backbone, condition, condition, scale, role=partial(roles.frozen, TEACHER))
    begin(denoiser, torch.empty_like(condition.source))


def sample_as_student(workload: Workload, backbone: Backbone, roles: Roles | Merged) -> None:
    """The same without guidance."""
    condition = most_at_once(workload, backbone)
    denoiser = Denoiser(backbone, condition, role=partial(roles.frozen, STUDENT))
    begin(denoiser, torch.empty_like(condition.source))


def sampling_peaks(workload: Workload, depths: Mapping[str, int]) -> list[int]:
    """The same of both samplers."""
    tally = MemoryTally()
    with tally, flash_on_meta(), torch.no_grad(), torch.device("meta"):
        backbone = load_empty(workload, depths)
        ranks = {role: workload.ranks()[role] for role in (STUDENT, TEACHER)}
        roles = empty_roles(workload, backbone, ranks)
        start, setup = tally.live, len(tally.peaks)
        backbone.network.register_forward_pre_hook(lambda *_: tally.begin_phase())
        sample_as_teacher(workload, backbone, roles)
        sample_as_student(workload, backbone, roles)
    return [peak - start for peak in tally.peaks[setup:]]


def empty_teaching(workload: Workload, backbone: Backbone) -> Teaching:
    """The training of an effect LoRA on the meta device as its second step finds it."""
    settings = workload.settings
    roles = empty_roles(workload, backbone, {STUDENT: settings.teach.rank})
    with torch.device("meta"):
        shapes = backbone.shapes(working_sizes(workload, backbone)[0])
        condition = shapes.empty_condition(1, workload.references)
    pairs = EncodedPairs(condition.source, condition.source, condition.prompt, condition.references)
    teaching = Teaching("effect", backbone, roles, pairs, settings)
    for parameter in teaching.parameters:
        parameter.grad = torch.zeros_like(parameter)
    teaching.optimizer.step()
    return teaching


def teaching_peaks(workload: Workload, depths: Mapping[str, int]) -> list[int]:
    """The same of an effect LoRA's training step, beyond its weights, gradients and moments."""
    tally = MemoryTally()
    with tally, flash_on_meta():
        backbone = load_empty(workload, depths)
        teaching = empty_teaching(workload, backbone)
        start, setup = tally.live, len(tally.peaks)
        teaching.optimizer.zero_grad()  # they come again in the step
        backbone.network.register_forward_pre_hook(lambda *_: tally.begin_phase())
        teaching(0)
    return [peak - start for peak in tally.peaks[setup:]]


@lru_cache
def vae_bytes(workload: Workload) -> tuple[int, int]:
    """The VAE's weights, and the most that it makes while it encodes or decodes one photo."""
    if not family_of(workload.base).block_stacks(workload.base):
        return 0, 0  # the nano base's latents are pixels
    tally = MemoryTally()
    shallow = dict.fromkeys(family_of(workload.base).block_stacks(workload.base), 1)
    with tally, flash_on_meta(), torch.device("meta"):
        backbone = load_empty(workload, shallow)
        before = tally.live
        backbone.encode_image(torch.empty(1, 3, 16, 16))  # loads it
        weights = tally.live - before
        tally.begin_phase()
        latents = backbone.encode_image(torch.empty(1, 3, *working_sizes(workload, backbone)[0]))
        backbone.decode(latents)
    return weights, tally.peaks[-1] - before - weights


@lru_cache
def vae_flops(workload: Workload) -> int:
    """The operations of the VAE while it encodes one photo, two for each multiplication."""
    shallow = dict.fromkeys(family_of(workload.base).block_stacks(workload.base), 1)
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        backbone = load_empty(workload, shallow)
        backbone.encode_image(torch.empty(1, 3, *working_sizes(workload, backbone)[0]))
    return counter.get_total_flops()


def at_depth(workload: Workload, measure: Callable[[Workload, Mapping[str, int]], list[int]]) -> int:
    """The largest of the peaks that `measure` finds, at the base's true depth.

    Blocks of a stack are alike, so each phase's peak is linear in the number of each: measured on shallow
    networks, carried to the true depth.
    """
    stacks = family_of(workload.base).block_stacks(workload.base)
    shallow = {name: min(SHALLOW, depth) for name, depth in stacks.items()}
    first = measure(workload, shallow)
    peaks = list(first)
    for name, depth in stacks.items():
        if depth > SHALLOW:
            deeper = measure(workload, {**shallow, name: SHALLOW + 1})
            more = depth - SHALLOW
            peaks = [p + more * (d - f) for p, d, f in zip(peaks, deeper, first, strict=True)]
    return max(peaks)


@lru_cache
def activation_bytes(workload: Workload) -> int:
    """The most bytes in a step beyond weights, gradients and moments: what autograd saves, and workspace."""
    return at_depth(workload, step_peaks)


@lru_cache
def sampling_bytes(workload: Workload) -> int:
    """The workspace of the teacher's sampler, and of the student's."""
    return at_depth(workload, sampling_peaks)


@lru_cache
def teaching_bytes(workload: Workload) -> int:
    """As `activation_bytes`, of `teach`."""
    return at_depth(workload, teaching_peaks)


class Peaks(NamedTuple):
    """The most bytes of each kind of work beyond what it begins with, tallied when they are first asked for.

    Attributes:
        step: as `step_of` gives it.
        unpacked: bytes of the one layer that is unpacked at a time; 0 without quantisation.
    """

    step: Workload
    unpacked: int

    @property
    def activations(self) -> int:
        return activation_bytes(self.step) + self.unpacked

    @property
    def sampling(self) -> int:
        return sampling_bytes(self.step) + self.unpacked

    @property
    def teaching(self) -> int:
        return teaching_bytes(self.step) + self.unpacked


def step_of(workload: Workload) -> Workload:
    """The same for all requests whose steps make the same tensors."""
    distill, other = workload.settings.distill, DistillSettings()
    held = {"moments": "float32", "ema_on_host": False, "critic_samples": other.critic_samples}
    neutral = ("student_updates", "route_every", "decay_ratio", "loraplus_lr_ratio", "ema")
    held |= {name: getattr(other, name) for name in neutral}
    weight = distill.anchor_weight
    held["anchor_weight"] = max(weight.start, weight.end)  # a step has the loss or has it not
    settings = replace_settings(
        workload.settings, model={"quantization": "none"}, targets={"general": 1}, distill=held
    )
    rank = workload.bench_ranks()[TEACHER]  # at least what the other verbs have
    return Workload(workload.base, 1, settings, teacher_rank=rank, references=workload.references)
