"""Peaks of memory, tallied on the meta device: real updates and forwards over shapes without values.

Memory grows by the same amount with each further like block, so that two shallow networks tell the deep one
(docs/planning.md).
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from math import prod
from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from collectionlora.adapters.roles import STUDENT, TEACHER, TeacherLibrary
from collectionlora.backbones import family_of
from collectionlora.backbones.base import Backbone, Condition
from collectionlora.config import replace_settings
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


def empty_run(workload: Workload, backbone: Backbone, tally: MemoryTally) -> tuple[TalliedRun, Batch]:
    """A run on the meta device as its second step finds it: gradients and moments are there."""
    settings = workload.settings
    with torch.device("meta"):
        roles = build_roles(backbone, workload.ranks(), 0, settings)
        shapes = backbone.shapes(working_sizes(workload, backbone)[0])
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
        backbone = load_empty(workload, depths)
        run, batch = empty_run(workload, backbone, tally)
        backbone.network.register_forward_pre_hook(lambda *_: tally.begin_phase())
        critic, generator = run.critics[0], torch.Generator()
        first = torch.zeros(len(batch.target), dtype=torch.int64)
        simulation = Simulation(few_step_sigmas(1), [batch.target], first, batch.target)
        share = Share(cast(Streams, None), batch, generator, simulation)
        # What one of several shares leaves behind is there while the next one's gradients come.
        shares, peaks = [share] * min(workload.settings.distill.accumulate, 2), []
        for update in (run.update_student, run.update_critic):  # each begins without the other's gradients
            start, setup = tally.live, len(tally.peaks)
            tally.begin_phase()
            update(shares, critic, 0.0)
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


def sampling_peaks(workload: Workload, depths: Mapping[str, int]) -> list[int]:
    """The same of the teacher's guided forwards and the student's, of as many images as they take at once."""
    settings = workload.settings
    tally = MemoryTally()
    with tally, flash_on_meta(), torch.no_grad(), torch.device("meta"):
        backbone = load_empty(workload, depths)
        ranks = {role: workload.ranks()[role] for role in (STUDENT, TEACHER)}
        roles = build_roles(backbone, ranks, 0, settings)
        condition = most_at_once(workload, backbone)
        start, setup = tally.live, len(tally.peaks)
        backbone.network.register_forward_pre_hook(lambda *_: tally.begin_phase())
        noise, scale = torch.empty_like(condition.source), settings.targets.guidance_scale
        begin(Denoiser(backbone, condition, condition, scale, role=partial(roles.use, TEACHER)), noise)
        begin(Denoiser(backbone, condition, role=partial(roles.use, STUDENT)), noise)
    return [peak - start for peak in tally.peaks[setup:]]


def teaching_peaks(workload: Workload, depths: Mapping[str, int]) -> list[int]:
    """The same of an effect LoRA's training step, beyond its weights, gradients and moments."""
    settings = workload.settings
    tally = MemoryTally()
    with tally, flash_on_meta():
        backbone = load_empty(workload, depths)
        with torch.device("meta"):
            roles = build_roles(backbone, {STUDENT: settings.teach.rank}, 0, settings)
            shapes = backbone.shapes(working_sizes(workload, backbone)[0])
            condition = shapes.empty_condition(1, workload.references)
        pairs = EncodedPairs(condition.source, condition.source, condition.prompt, condition.references)
        teaching = Teaching("effect", backbone, roles, pairs, settings)
        for parameter in teaching.parameters:
            parameter.grad = torch.zeros_like(parameter)
        teaching.optimizer.step()
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


def step_of(workload: Workload) -> Workload:
    """The same for all requests whose steps make the same tensors."""
    held = {"moments": "float32", "ema_on_host": False}
    settings = replace_settings(workload.settings, model={"quantization": "none"}, distill=held)
    rank = workload.bench_ranks()[TEACHER]  # at least what the other verbs have
    return Workload(workload.base, 1, settings, teacher_rank=rank, references=workload.references)
