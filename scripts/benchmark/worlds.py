"""What is measured: runs of the method over a middling Qwen transformer and over nano, and meters."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_backward_flop_count

from collectionlora.adapters.roles import STUDENT, TEACHER, TeacherLibrary, critic_role
from collectionlora.backbones.base import Backbone, Prompt
from collectionlora.backbones.diffusers_model import DiffusersBackbone
from collectionlora.backbones.nano import RECOMMENDED, NanoBackbone
from collectionlora.backbones.qwen_image_edit import QWEN_IMAGE_EDIT_PLUS
from collectionlora.config import Overrides, Settings, resolve
from collectionlora.distillation import Distillation
from collectionlora.runs.session import build_roles
from collectionlora.streams import EffectData, GeneralData, Streams

# 77 M parameters; at 256 pixels it reads 256 noisy, 256 photo and 64 text tokens.
QWEN: dict[str, Any] = {
    "num_layers": 8,
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "joint_attention_dim": 256,
    "axes_dims_rope": (16, 24, 24),
}
TEXT_TOKENS = 64
# The paper's losses and guidance, every step an effect's, all three losses to the end.
PAPER: Overrides = {
    "student": {"rank": 16},
    "critic": {"rank": 16},
    "match": {"updates": 0},
    "distill": {
        **{"effect_ratio": 1.0, "anchor_weight": 1.0, "rollout_steps": [8]},
        **{"decay_ratio": 0, "guidance_scale": 5.0},
    },
}
MIB = 2**20


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    batch, heads, rows, size = query
    return 4 * batch * heads * rows * key[2] * size


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def qwen_backbone(settings: Settings) -> DiffusersBackbone:
    """The transformer alone, with random weights."""
    torch.manual_seed(0)
    backbone = QWEN_IMAGE_EDIT_PLUS.load("random weights", settings.model)
    network = QwenImageTransformer2DModel(**QWEN).eval()
    backbone.network = nn.Module.to(network, backbone.dtype)  # diffusers' own warns of a cast
    return backbone


def qwen_run(*layers: Overrides, effects: int = 1) -> Distillation:
    """A run over the Qwen transformer; `layers` over the paper's settings."""
    settings = resolve(PAPER, {"data": {"resolution": 256}}, *layers)
    tokens = torch.randn(1, TEXT_TOKENS, QWEN["joint_attention_dim"])
    prompt = Prompt(tokens, torch.ones(1, TEXT_TOKENS, dtype=torch.bool))
    side = settings.data.resolution // 8
    return make_run(qwen_backbone(settings), settings, torch.randn(1, 16, side, side), prompt, effects)


def nano_run(*layers: Overrides, effects: int = 1) -> Distillation:
    """A run over the nano base as the demo's, past its warm start."""
    settings = resolve(RECOMMENDED, {"match": {"updates": 0}, "distill": {"effect_ratio": 1.0}}, *layers)
    torch.manual_seed(0)
    backbone, side = NanoBackbone.load(), settings.data.resolution
    prompt = backbone.encode_prompt(["<effect_balumo> turn the photo into a pencil sketch on old paper"])
    return make_run(backbone, settings, torch.rand(1, 3, side, side) * 2 - 1, prompt, effects)


def make_run(
    backbone: Backbone, settings: Settings, latents: Tensor, prompt: Prompt, effects: int
) -> Distillation:
    """A run whose effects differ in their random teachers alone; `latents` `[1, C, H, W]`."""
    ranks = {STUDENT: settings.student.rank, TEACHER: settings.student.rank}
    ranks |= {critic_role(n): settings.critic.rank for n in settings.distill.rollout_steps}
    roles = build_roles(backbone, ranks, 0, settings)
    names = [f"effect-{i}" for i in range(effects)]
    teachers = {}
    for name in names:
        teachers[name] = {module: (a, 0.01 * torch.randn_like(b)) for module, (a, b) in fresh(roles)}
    data = [EffectData(name, latents, latents[None], prompt, prompt, prompt) for name in names]
    streams = Streams(
        data,
        GeneralData(latents, prompt, latents, prompt),
        seed=0,
        batch_size=settings.distill.batch_size,
        effect_ratio=settings.distill.effect_ratio,
    )
    return Distillation(backbone, roles, TeacherLibrary(roles, teachers), streams, settings)


def fresh(roles: Any) -> list[tuple[str, tuple[Tensor, Tensor]]]:
    return list(roles.weights(TEACHER).items())


def cpu_seconds(work: Callable[[], Any], rounds: int, warm_up: int = 1) -> float:
    """CPU seconds of this process for one call: the best of `rounds`, since others may share the machine."""
    for _ in range(warm_up):
        work()
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def matmul_ceiling() -> float:
    """FLOP/s of the largest matrix product worth its name, now, on this thread, float32."""
    a, b = torch.randn(2, 1024, 1024)
    return 2 * 1024**3 / cpu_seconds(lambda: a @ b, rounds=10)


def flops_of(work: Callable[[], Any]) -> int:
    """Operations of matrix products, convolutions and attention in one call, backward too."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_mib() -> float:
    """The most memory that this process has held, imports included (Linux)."""
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / MIB
