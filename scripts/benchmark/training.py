"""Parts that measure training."""

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from worlds import (
    QWEN,
    TEXT_TOKENS,
    cpu_seconds,
    flops_of,
    matmul_ceiling,
    nano_run,
    peak_mib,
    qwen_backbone,
    qwen_run,
)

from collectionlora.adapters.roles import BASE, STUDENT, Roles
from collectionlora.backbones.qwen_image_edit import QWEN_IMAGE_EDIT_PLUS
from collectionlora.config import Overrides, resolve
from collectionlora.distillation import Distillation, Share, Simulation
from collectionlora.flow import few_step_sigmas
from collectionlora.planning.memory import flash_on_meta
from collectionlora.runs.checkpoint import checkpoint_writer
from collectionlora.runs.session import build_roles
from collectionlora.sampling import Denoiser

CHECKPOINTED = {"model": {"gradient_checkpointing": True}}
# The public reference: of its 61 forwards 8 keep a graph; three whole bases.
REFERENCE_FORWARDS, REFERENCE_BACKWARDS, REFERENCE_BASES = 61, 8, 3


def count_calls(run: Distillation, step: int) -> tuple[float, int]:
    """(forwards, backwards) of one sample in a step, seen by hooks on the network."""
    seen: Counter[str] = Counter()

    def called(_module: Any, _inputs: Any, output: Any) -> None:
        velocity = output[0] if isinstance(output, tuple) else output
        seen["forwards"] += len(velocity)
        if velocity.requires_grad:
            velocity.register_hook(lambda _gradient: seen.update(["backwards"]))

    handle = run.backbone.network.register_forward_hook(called)
    run(step)
    handle.remove()
    return seen["forwards"] / run.settings.distill.batch_size, seen["backwards"]


def counts() -> dict[str, Any]:
    """Forwards and backwards of a student update, guidance counted twice; the mean where they are random."""
    paper = {"anchor_weight": 1.0, "rollout_steps": [8], "batch_size": 2, "guidance_scale": 5.0}
    small: Overrides = {"data": {"resolution": 16}, "student": {"rank": 2}, "critic": {"rank": 2}}
    recipe: Overrides = {**small, "distill": paper}
    variants: dict[str, Overrides] = {
        "effect": {},
        "general": {"distill": {"effect_ratio": 0.0}},
        "simulated": {"distill": {"critic_samples": "simulated"}},
    }
    result = {}
    for name, layer in variants.items():
        run = nano_run(recipe, layer)
        steps = [count_calls(run, step) for step in range(48 if name == "simulated" else 1)]
        result[name] = [sum(values) / len(steps) for values in zip(*steps, strict=True)]
    return {**result, "reference": [REFERENCE_FORWARDS, REFERENCE_BACKWARDS]}


def cycle(layer: Overrides) -> dict[str, Any]:
    """A student update with its critic updates over the Qwen transformer."""
    run = qwen_run(layer)
    run(0)
    seconds = cpu_seconds(lambda: run(1), rounds=2, warm_up=0)
    peak = peak_mib()
    flops = flops_of(lambda: run(2))
    return {"seconds": seconds, "peak_mib": peak, "flops": flops, "matmul_flops": matmul_ceiling()}


def cycle_plain() -> dict[str, Any]:
    return cycle({})


def cycle_checkpointed() -> dict[str, Any]:
    return cycle(CHECKPOINTED)


def imports() -> dict[str, Any]:
    """What a process holds before it has a model."""
    return {"peak_mib": peak_mib()}


def reference_layout() -> dict[str, Any]:
    """The same network as the public reference holds and calls it: three bases, batch 1, checkpointed.

    A cycle is added up from the time of one forward without and one with gradient.
    """
    torch.manual_seed(0)
    settings = resolve({"data": {"resolution": 256}})
    backbone, networks = qwen_backbone(settings), []
    targets = list(backbone.lora_targets)
    for number in range(REFERENCE_BASES):
        network = QwenImageTransformer2DModel(**QWEN) if number else backbone.network
        network.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=16, lora_alpha=16, target_modules=targets), network)
        network.enable_gradient_checkpointing(lambda m, *a: checkpoint(m, *a, use_reentrant=False))
        networks.append(network)
    for parameter in networks[2].parameters():  # the teacher does not learn
        parameter.requires_grad_(False)
    inputs = {
        "hidden_states": torch.randn(1, 512, 64),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, QWEN["joint_attention_dim"]),
        "img_shapes": [[(1, 16, 16), (1, 16, 16)]],
        "return_dict": False,
    }
    learned = [p for network in networks[:2] for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned)

    @torch.no_grad()
    def forward() -> None:
        networks[2](**inputs)

    def learn() -> None:
        networks[0](**inputs)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    learnt = cpu_seconds(learn, rounds=3)
    plain = cpu_seconds(forward, rounds=3)
    seconds = (REFERENCE_FORWARDS - REFERENCE_BACKWARDS) * plain + REFERENCE_BACKWARDS * learnt
    return {"seconds": seconds, "peak_mib": peak_mib(), "matmul_flops": matmul_ceiling()}


def nano() -> dict[str, Any]:
    """How near nano training comes to the machine's matrix products."""
    run = nano_run()
    run(0)
    before = matmul_ceiling()
    seconds = cpu_seconds(lambda: run(1), rounds=3, warm_up=0)
    ceiling = max(before, matmul_ceiling())
    return {"seconds": seconds, "flops": flops_of(lambda: run(1)), "matmul_flops": ceiling}


def switch() -> dict[str, Any]:
    """Changing the teacher, against a step."""
    result: dict[str, Any] = {}
    for name, run in (("nano", nano_run(effects=2)), ("qwen", qwen_run(effects=2))):
        library = run.teachers

        def change(library: Any = library) -> None:
            for effect in library.teachers:
                with library.use(effect):
                    pass

        run(0)
        step = cpu_seconds(lambda run=run: run(1), rounds=1, warm_up=0)  # type: ignore[misc]
        batch = cpu_seconds(lambda run=run: run.streams.batch(1), rounds=20)  # type: ignore[misc]
        result[name] = {"switch": cpu_seconds(change, rounds=20) / 2, "step": step, "batch": batch}
    return result


def profile_step(run: Distillation) -> dict[str, float]:
    """The share of a step's own CPU time by operator, the largest first."""
    run(0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run(1)
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key: round(event.self_cpu_time_total / total, 4) for event in events[:16]}


def profiles() -> dict[str, Any]:
    return {"nano": profile_step(nano_run()), "qwen": profile_step(qwen_run())}


def growth() -> dict[str, Any]:
    """How cost grows with tokens and batch (critic updates over the Qwen transformer) and with effects."""
    tokens: dict[str, Any] = {}
    for side in (128, 256, 384):
        run = qwen_run({"data": {"resolution": side}})
        tokens[str(2 * (side // 16) ** 2 + TEXT_TOKENS)] = critic_seconds(run)
    batch = {}
    for size in (1, 2, 4):
        run = qwen_run({"distill": {"batch_size": size}})
        batch[str(size)] = critic_seconds(run) / size
    effects = {}
    for number in (2, 12, 180):
        library = nano_run(effects=number).teachers
        held = sum(4 * t.numel() for w in library.teachers.values() for pair in w.values() for t in pair)

        def through(library: Any = library) -> None:
            for effect in list(library.teachers):
                with library.use(effect):
                    pass

        effects[str(number)] = {"mib": held / 2**20, "switch": cpu_seconds(through, rounds=3) / number}
    return {"tokens": tokens, "batch": batch, "effects": effects}


def critic_seconds(run: Distillation) -> float:
    """One critic update: a forward and a backward."""
    batch, generator = run.streams.batch(0), run.streams.generator(0)
    simulation = Simulation(few_step_sigmas(1), [batch.target], torch.zeros(len(batch.target)), batch.target)
    share = Share(run.streams, batch, generator, simulation)
    return cpu_seconds(lambda: run.update_critic([share], run.critics[0], 0.0), rounds=2)


def saving() -> dict[str, float]:
    """Wall seconds of a checkpoint of 256 MiB: until training goes on, and until it is on the disk."""
    tensors = {str(number): torch.randn(1024, 1024) for number in range(64)}
    best = {"waits": float("inf"), "takes": float("inf")}
    with tempfile.TemporaryDirectory() as name, checkpoint_writer(Path(name), 9, keep=1) as writer:
        for step in range(4):
            began = time.perf_counter()
            writer.save(step, tensors)
            waits = time.perf_counter() - began
            writer.wait()
            takes = time.perf_counter() - began
            best = min(best, {"waits": waits, "takes": takes}, key=lambda one: one["takes"])
    return best


class Traffic(TorchDispatchMode):
    """Bytes that the operations inside the block read and write, as if nothing stayed in a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, out))
            self.moved += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        return out


def as_peft_computes(roles: Roles) -> None:
    """Let LoRAs over a bfloat16 base compute in float32 again, by peft's own forward."""
    for layer in roles.layers.values():
        layer.__class__ = type(layer).__bases__[1]


def lora() -> dict[str, Any]:
    """What LoRA costs over a bfloat16 base: in the base's dtype, and in float32 as peft computes.

    Seconds over the Qwen transformer of 77 M parameters; bytes of a block of the true one at rank 128 and
    1024 pixels, which is counted and not run.
    """
    run = qwen_run({"model": {"dtype": "bfloat16"}})
    seconds = {"base": forward_and_learning(run, BASE)}
    for name in ("bfloat16", "float32"):
        if name == "float32":
            as_peft_computes(run.roles)
        seconds[name] = forward_and_learning(run, STUDENT)
    return {"seconds": seconds, "block_bytes": block_traffic()}


def forward_and_learning(run: Distillation, role: str | None) -> dict[str, float]:
    """Seconds of a forward without gradient in a role, and of a forward with its backward."""
    batch = run.streams.batch(0)
    batch.target.requires_grad_(role is BASE)  # so that the bare base has a backward as well

    def forward() -> Tensor:
        with run.roles.use(role):
            return Denoiser(run.backbone, batch.student).velocity(batch.target, 0.5)

    with torch.no_grad():
        plain = cpu_seconds(forward, rounds=5)
    return {"forward": plain, "learn": cpu_seconds(lambda: forward().sum().backward(), rounds=5)}


def block_traffic() -> dict[str, int]:
    """Bytes moved by a forward through one block of Qwen-Image-Edit-2509, by how its LoRA computes."""
    base = "Qwen/Qwen-Image-Edit-2509"
    settings = resolve(QWEN_IMAGE_EDIT_PLUS.recommended_settings(base))
    moved: dict[str, int] = {}
    for name in ("base", "bfloat16", "float32"):
        by_depth = []
        for depth in (1, 2):
            with flash_on_meta(), torch.no_grad(), torch.device("meta"):
                backbone = QWEN_IMAGE_EDIT_PLUS.without_weights(base, settings.model, {"num_layers": depth})
                roles = build_roles(backbone, {STUDENT: settings.student.rank}, 0, settings)
                if name == "float32":
                    as_peft_computes(roles)
                shapes = backbone.shapes((settings.data.resolution,) * 2)
                condition = shapes.empty_condition(1)
                denoiser = Denoiser(backbone, condition)
                with roles.use(BASE if name == "base" else STUDENT), Traffic() as traffic:
                    denoiser.velocity(torch.empty_like(condition.source), 0.5)
                by_depth.append(traffic.moved)
        moved[name] = by_depth[1] - by_depth[0]
    return moved
