"""A small base of four blocks, and peak bytes of real tensors in two real steps at its largest size."""

import json
from math import prod

import torch
from diffusers import QwenImageTransformer2DModel

from collectionlora.adapters.roles import STUDENT, TEACHER, TeacherLibrary, critic_role
from collectionlora.backbones.base import Prompt
from collectionlora.backbones.qwen_image_edit import QWEN_IMAGE_EDIT_PLUS
from collectionlora.distillation import Distillation
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.planning.memory import MemoryTally
from collectionlora.runs.session import build_roles
from collectionlora.streams import EffectData, GeneralData, Streams

SMALL = {
    "model": {"condition_resolution": 56},
    "data": {"resolution": 128},
    "student": {"rank": 16},
    "critic": {"rank": 16},
    "distill": {"rollout_steps": [2], "student_update_every": 1, "anchor_weight": 1},
}


def write_base(path):
    """The configuration of a Qwen transformer with 4 blocks and 33 M parameters, without weights."""
    sizes = {"num_layers": 4, "num_attention_heads": 8, "attention_head_dim": 64, "joint_attention_dim": 256}
    config = {"_class_name": "QwenImageTransformer2DModel", **sizes, "axes_dims_rope": [16, 24, 24]}
    (path / "transformer").mkdir()
    (path / "transformer" / "config.json").write_text(json.dumps(config))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImageEditPlusPipeline"}))
    (path / "vae").mkdir()
    (path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLQwenImage"}))
    return str(path)


def measure(folder, settings):
    """The tallied peak in bytes."""
    backbone = QWEN_IMAGE_EDIT_PLUS.load(folder, settings.model)
    with MemoryTally() as tally:
        config = backbone.family.transformer_config(folder)
        backbone.network = QwenImageTransformer2DModel.from_config(config)
        sizes = WorkingSizes.of(settings.data, backbone.side_multiple).list_all()
        shapes = backbone.shapes(max(sizes, key=prod))
        ranks = {STUDENT: settings.student.rank, TEACHER: settings.student.rank}
        ranks |= {critic_role(n): settings.critic.rank for n in settings.distill.rollout_steps}
        roles = build_roles(backbone, ranks, 0, settings)
        prompt = Prompt(torch.randn(1, *shapes.tokens), torch.ones(1, shapes.tokens[0], dtype=torch.bool))
        latents = torch.randn(1, *shapes.latents)
        effect = EffectData("effect", latents, latents[None], prompt, prompt, prompt)
        general = GeneralData(latents, prompt, latents, prompt)
        streams = Streams([effect], general, seed=0, batch_size=1, effect_ratio=1)
        # In a run the teachers wait in host memory: here an empty one, which adds nothing.
        run = Distillation(backbone, roles, TeacherLibrary(roles, {"effect": {}}), streams, settings)
        for step in range(2):
            run(step)
    return max(tally.peaks)
