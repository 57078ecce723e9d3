"""Large bases with random weights, made on the device: the true transformers without their files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from device import DEVICE
from diffusers import FlowMatchEulerDiscreteScheduler

from collectionlora.adapters.roles import TEACHER, LoraWeights, Roles, TeacherLibrary
from collectionlora.backbones.base import Prompt
from collectionlora.backbones.diffusers_files import INDEX, find_class
from collectionlora.backbones.diffusers_model import DiffusersBackbone, DiffusersFamily
from collectionlora.backbones.flux2 import FLUX_2_KLEIN, KLEIN_4B
from collectionlora.backbones.qwen_image_edit import QWEN_IMAGE_EDIT_PLUS, TRANSFORMER
from collectionlora.config import Overrides, Settings, resolve
from collectionlora.planning.workload import Workload
from collectionlora.runs.session import build_roles
from collectionlora.streams import EffectData, GeneralData, Streams

EFFECTS = ("first", "second")
SMALL = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32, "joint_attention_dim": 32}
SMALL_KLEIN = {**KLEIN_4B, **SMALL, "num_single_layers": 2, "in_channels": 16, "axes_dims_rope": [8, 8, 8, 8]}
SCHEDULER = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}


@dataclass(frozen=True)
class LargeBase:
    """A base by its family and its transformer's config; `small` is what stands for it on the CPU."""

    family: DiffusersFamily
    config: Mapping[str, Any]
    small: Mapping[str, Any]


BASES = {
    "qwen": LargeBase(
        QWEN_IMAGE_EDIT_PLUS, TRANSFORMER, {**TRANSFORMER, **SMALL, "axes_dims_rope": [8, 12, 12]}
    ),
    "klein": LargeBase(FLUX_2_KLEIN, KLEIN_4B, SMALL_KLEIN),
}
# The paper's losses and guidance, every step an effect's, all three losses to the end.
PAPER: Overrides = {
    "match": {"updates": 0},
    "targets": {"guidance_scale": 4.0},
    "distill": {
        **{"effect_ratio": 1.0, "anchor_weight": 1.0, "rollout_steps": [8], "guidance_scale": 5.0},
        **{"decay_ratio": 0},
    },
}
TINY: Overrides = {"data": {"resolution": 32}, "model": {"condition_resolution": 56}}


def write_folder(base: LargeBase, folder: Path, tiny: bool) -> str:
    """A model's folder without its weights; its path as `base:` gives it."""
    config = {"_class_name": base.family.network_class, **(base.small if tiny else base.config)}
    vae = next(iter(base.family.known.values())).vae
    for part in ("transformer", "vae"):
        (folder / part).mkdir(parents=True)
    (folder / INDEX).write_text(json.dumps({"_class_name": base.family.name}))
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    (folder / "vae" / "config.json").write_text(json.dumps({"_class_name": base.family.vae_class, **vae}))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **SCHEDULER)
    scheduler.save_pretrained(folder / "scheduler")
    return str(folder)


def make_workload(base: LargeBase, folder: str, rank: int, tiny: bool, *layers: Overrides) -> Workload:
    """One effect over the base as it is recommended, at one rank of all roles."""
    ranks = {"student": {"rank": rank}, "critic": {"rank": rank}}
    small = [TINY] if tiny else []
    recommended = base.family.recommended_settings(folder)
    return Workload(folder, len(EFFECTS), resolve(recommended, PAPER, ranks, *small, *layers))


def load_random(base: LargeBase, folder: str, settings: Settings) -> DiffusersBackbone:
    """The base with weights as its layers draw them, in the settings' dtype."""
    backbone = base.family.load(folder, settings.model)
    network_class, before = find_class(folder, base.family.network_class), torch.get_default_dtype()
    torch.set_default_dtype(backbone.dtype)
    try:
        with DEVICE:
            network = network_class.from_config(base.family.transformer_config(folder))
    finally:
        torch.set_default_dtype(before)
    backbone.network = network.requires_grad_(False).eval()
    return backbone


def random_teacher(roles: Roles) -> LoraWeights:
    """An effect LoRA that changes something, in host memory as a run keeps it."""
    weights = {}
    for module, (a, b) in roles.weights(TEACHER).items():
        weights[module] = a.cpu(), (0.01 * torch.randn_like(b)).cpu()
    return weights


def make_parts(
    backbone: DiffusersBackbone, workload: Workload
) -> tuple[DiffusersBackbone, Roles, TeacherLibrary, Streams, Settings]:
    """What `Distillation` is made from; the effects differ in their teachers alone."""
    settings, shapes = workload.settings, backbone.shapes((workload.settings.data.resolution,) * 2)
    with DEVICE:
        roles = build_roles(backbone, workload.ranks(), 0, settings)
    prompt = Prompt(torch.randn(1, *shapes.tokens), torch.ones(1, shapes.tokens[0], dtype=torch.bool))
    latents = torch.randn(1, *shapes.latents)
    data = [EffectData(name, latents, latents[None], prompt, prompt, prompt) for name in EFFECTS]
    general = GeneralData(latents, prompt, latents, prompt)
    distill = settings.distill
    streams = Streams(data, general, seed=0, batch_size=distill.batch_size, effect_ratio=distill.effect_ratio)
    library = TeacherLibrary(roles, {name: random_teacher(roles) for name in EFFECTS})
    return backbone, roles, library, streams, settings
