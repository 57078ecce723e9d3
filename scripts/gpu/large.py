"""A large base at true size: memory against the plan, seconds of each part of a step, share of the peak."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bases import BASES, EFFECTS, load_random, make_parts, make_workload, write_folder
from device import CUDA, Meter, make_meter, matmul_rate, seconds_of, seconds_of_one
from entries import Entries
from torch.utils.flop_counter import FlopCounterMode

from collectionlora.adapters.roles import BASE, STUDENT
from collectionlora.config import Overrides
from collectionlora.distillation import Distillation
from collectionlora.objectives import flow_matching_loss
from collectionlora.planning.forwards import count_forwards
from collectionlora.planning.plan import RESERVED_SHARE, plan
from collectionlora.planning.workload import Workload
from collectionlora.sampling import Denoiser, noise_like, sample_many_steps
from collectionlora.streams import Batch

# The public reference: of its 61 forwards 8 keep a graph; three whole bases.
REFERENCE_FORWARDS, REFERENCE_BACKWARDS, REFERENCE_BASES = 61, 8, 3
EIGHT_BITS: Overrides = {"distill": {"moments": "8bit"}}


class MeasuredRun(Distillation):
    """A run that notes seconds and peak of its student and critic updates."""

    meter: Meter
    notes: dict[str, list[tuple[float, int]]]

    def update_student(self, *args: Any) -> dict[str, float]:
        return self.note("student", partial(super().update_student, *args))

    def update_critic(self, *args: Any) -> dict[str, float]:
        return self.note("critic", partial(super().update_critic, *args))

    def note(self, name: str, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        self.meter.reset()
        seconds, metrics = seconds_of_one(work)
        self.notes.setdefault(name, []).append((seconds, self.meter.peak()))
        return metrics

    def make_moments(self) -> None:
        """The optimizers' state as a later step finds it."""
        for role, optimizer in self.optimizers.items():
            for parameter in self.roles.parameters(role):
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad()


def plan_that_fits(
    name: str, folder: str, rank: int, tiny: bool, entries: Entries
) -> tuple[Workload, dict[str, Any]]:
    """The workload, with moments in 8 bits where the device is too small for others, and its plan."""
    workload = make_workload(BASES[name], folder, rank, tiny)
    planned = plan(workload)
    needed = planned["total_bytes_per_device"]
    if CUDA and needed > torch.cuda.mem_get_info()[0] * (1 - RESERVED_SHARE):
        workload = make_workload(BASES[name], folder, rank, tiny, EIGHT_BITS)
        planned = plan(workload)
    critic = 4 * planned["lora_parameters"]
    entries.put(
        rank=rank,
        resolution=workload.settings.data.resolution,
        moments=workload.settings.distill.moments,
        planned_bytes={
            "targets": planned["verbs"]["targets"]["device_bytes"] + critic,  # which is held here too
            "update": planned["total_bytes_per_device"],
            "reference_layout": planned["reference_layout_bytes"],
        },
    )
    return workload, planned


def measure_targets(run: MeasuredRun, batch: Batch, entries: Entries, planned: int) -> None:
    """Two guided steps of a teacher's sampler."""
    settings = run.settings.targets
    with run.teachers.use(EFFECTS[0]):
        denoiser = Denoiser(run.backbone, batch.teacher, batch.uncond, settings.guidance_scale)
        noise = noise_like(batch.target, run.generator(run.streams, 0))
        run.meter.reset()
        seconds, image = seconds_of_one(lambda: sample_many_steps(denoiser, noise, 2))
    peak = run.meter.peak()
    assert torch.isfinite(image).all(), "targets are not finite"
    entries.put(
        peak_bytes={"targets": peak},
        ratio={"targets": round(peak / planned, 4)},
        seconds={"two_steps": seconds},
    )


def measure_forwards(run: MeasuredRun, batch: Batch, entries: Entries) -> dict[str, int]:
    """Seconds of a forward with and without LoRA and of one that is learnt from; FLOPs of the last two."""
    noise, seconds = noise_like(batch.target, run.generator(run.streams, 0)), {}

    @torch.no_grad()
    def forward(role: str | None) -> None:
        with run.roles.frozen(role):
            Denoiser(run.backbone, batch.student).velocity(noise, 0.5)

    def learn() -> None:
        velocity = run.student(batch).velocity(noise, 0.5)
        flow_matching_loss(velocity, batch.target, noise).backward()
        for parameter in run.roles.parameters(STUDENT):
            parameter.grad = None

    seconds = {"forward_base": seconds_of(lambda: forward(BASE))}
    seconds["forward_student"] = seconds_of(lambda: forward(STUDENT))
    seconds["learn"] = seconds_of(learn)
    counted = {}
    for name, work in {"forward": lambda: forward(STUDENT), "learn": learn}.items():
        with FlopCounterMode(display=False) as counter:
            work()
        counted[name] = int(counter.get_total_flops())
    overhead = seconds["forward_student"] / seconds["forward_base"] - 1
    entries.put(seconds=seconds, flops=counted, lora_overhead=round(overhead, 4))
    return counted


def measure_switch(run: MeasuredRun, entries: Entries) -> None:
    """Another effect's LoRA into the teacher slot."""
    turn = iter(range(100))

    def switch() -> None:
        with run.teachers.use(EFFECTS[next(turn) % 2]):
            pass

    size = sum(t.nbytes for pair in run.teachers.teachers[EFFECTS[0]].values() for t in pair)
    seconds = seconds_of(switch)
    entries.put(seconds={"switch": seconds}, switch_bytes=size, switch_bytes_a_second=size / seconds)


def measure_step(
    run: MeasuredRun, entries: Entries, planned: dict[str, Any], cycles: int, flops: dict[str, int]
) -> None:
    """Whole cycles: a student update and its critic updates; the last one's seconds count."""
    run.make_moments()
    # A CPU without AMX multiplies float32 faster than bfloat16.
    rate = max(matmul_rate(8192 if CUDA else 256, dtype) for dtype in (run.backbone.dtype, torch.float32))
    # The phase's first step would make the student's optimizer anew, without its moments.
    first = run.settings.match.updates + 1
    for step in range(first, first + cycles):
        cycle, metrics = seconds_of_one(partial(run, step))
        peaks = {name: max(peak for _, peak in noted) for name, noted in run.notes.items()}
        total = planned["total_bytes_per_device"]
        forwards, backwards = count_forwards(run.settings)
        recomputed = run.settings.model.gradient_checkpointing
        backward = flops["learn"] - (2 if recomputed else 1) * flops["forward"]
        useful = forwards * flops["forward"] + backwards * backward
        done = useful + (backwards * flops["forward"] if recomputed else 0)
        entries.put(
            peak_bytes=peaks,
            ratio={"update": round(max(peaks.values()) / total, 4)},
            seconds={"cycle": cycle, **{name: noted[-1][0] for name, noted in run.notes.items()}},
            metrics=metrics,
            matmul_flops_a_second=rate,
            share_of_matmul={
                "useful": round(useful / cycle / rate, 4),
                "done": round(done / cycle / rate, 4),
            },
        )


def compare_reference(entries: Entries, planned: dict[str, Any]) -> None:
    """The reference's layout by its counted forwards, timed here one by one."""
    found = entries.read()
    seconds, base = found["seconds"], planned["base_bytes"]
    plain = REFERENCE_FORWARDS - REFERENCE_BACKWARDS
    cycle = plain * seconds["forward_student"] + REFERENCE_BACKWARDS * seconds["learn"]
    peak = max(found["peak_bytes"][name] for name in ("student", "critic"))
    size = peak + (REFERENCE_BASES - 1) * base
    entries.put(
        reference={
            "seconds": cycle,
            "bytes": size,
            "ours_by_seconds": round(seconds["cycle"] / cycle, 4),
            "ours_by_bytes": round(peak / size, 4),
        }
    )


def measure_large(name: str, rank: int, cycles: int, tiny: bool, entries: Entries, folder: Path) -> None:
    """All of it for one base at one rank; `folder` is an empty place for its config."""
    base = write_folder(BASES[name], folder, tiny)
    workload, planned = plan_that_fits(name, base, rank, tiny, entries)
    meter = make_meter()
    with meter:
        backbone = load_random(BASES[name], base, workload.settings)
        run = MeasuredRun(*make_parts(backbone, workload))
        run.meter, run.notes = meter, {}
        batch = run.batch(run.streams, 0)
        measure_targets(run, batch, entries, entries.read()["planned_bytes"]["targets"])
        flops = measure_forwards(run, batch, entries)
        measure_switch(run, entries)
        measure_step(run, entries, planned, cycles, flops)
    compare_reference(entries, planned)
