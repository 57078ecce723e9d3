"""Qwen-Image-Edit: 2509 and 2511 (`EditPlus`, several reference images), and the first one, of one photo.

The text encoder sees the photos beside the text, so an encoded prompt belongs to its photos. Guidance keeps
the length that each token of the conditional velocity has.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from collectionlora.backbones.base import Condition, Prompt, Shapes
from collectionlora.backbones.comfyui import Graph, Student, frame, node, show_photo
from collectionlora.backbones.diffusers_files import opening
from collectionlora.backbones.diffusers_model import (
    LARGE,
    DiffusersBackbone,
    DiffusersFamily,
    KnownBase,
    pack,
    unpack,
)
from collectionlora.backbones.family import EncoderSize, ExportFacts, Speech
from collectionlora.objectives import guided
from collectionlora.pictures.photos import to_photos

TEXT_TOKENS = 64  # of an instruction, for a plan
UNCONDITIONAL = " "  # the negative prompt that the model card gives
TRANSFORMER = {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 64,
    "out_channels": 16,
    "joint_attention_dim": 3584,
    "axes_dims_rope": [16, 56, 56],
}
# Pixels of two tokens, to which its pipeline rounds photos too: where a side has an odd number of tokens,
# diffusers and ComfyUI centre the tokens' positions differently.
SIDE_MULTIPLE = 32
ENCODER = EncoderSize(8_292_166_656, 7_155_253_248)
KNOWN = KnownBase(TRANSFORMER, ENCODER)
# 2511 reads the photos as if at sigma 0, whatever the noisy image's.
CLEAN_PHOTOS = "zero_cond_t"
KNOWN_2511 = KnownBase({**TRANSFORMER, CLEAN_PHOTOS: True}, ENCODER)

# Its processor is a Qwen2VLProcessor; the turn is that of its chat template.
QWEN_25_VL = Speech(
    encoder="Qwen2_5_VLForConditionalGeneration",
    processor="processor",
    picture="<|vision_start|><|image_pad|><|vision_end|>",
    turn=(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n{pictures}{text}<|im_end|>\n<|im_start|>assistant\n"
    ),
    ends=("<|im_end|>", "<|endoftext|>"),
)


@dataclass(frozen=True)
class QwenCondition:
    """Prompt and packed images `[B, N, 4 * C]`, with each image's patch grid (1, rows, columns)."""

    tokens: Tensor
    mask: Tensor | None
    images: Tensor
    grids: list[tuple[int, int, int]]


def patch_grid(latents: Tensor) -> tuple[int, int, int]:
    """Frames, rows and columns of patches of latents `[B, C, H, W]`."""
    return 1, latents.shape[-2] // 2, latents.shape[-1] // 2


class QwenBackbone(DiffusersBackbone):
    """What all Qwen-Image models share: the text encoder sees the photos, and the VAE is one for videos."""

    prompts_see_photos = True

    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each latent channel, `[1, C, 1, 1, 1]`."""
        config = self.vae.config
        mean, std = (torch.tensor(values) for values in (config.latents_mean, config.latents_std))
        return self._enter(mean).view(1, -1, 1, 1, 1), self._enter(std).view(1, -1, 1, 1, 1)

    def _encode(self, image: Tensor) -> Tensor:
        mean, std = self._scale()
        latent = self.vae.encode(image[:, :, None]).latent_dist.mode()
        return ((latent - mean) / std)[:, :, 0]

    def _decode(self, latent: Tensor) -> Tensor:
        mean, std = self._scale()
        return self.vae.decode(latent[:, :, None] * std + mean).sample[:, :, 0]


class QwenImageEditPlus(QwenBackbone):
    """Qwen-Image-Edit-2509 and 2511."""

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], photos: Sequence[Tensor] = ()) -> Prompt:
        # One at a time, as the pipeline does: every text has images of its own.
        rows = []
        for index, text in enumerate(prompts):
            seen = [self._as_seen(photo[index]) for photo in photos]
            tokens, mask = self.text_pipeline.encode_prompt(text or UNCONDITIONAL, image=seen or None)
            mask = torch.ones(tokens.shape[:2]) if mask is None else mask
            rows.append(Prompt(tokens.cpu(), mask.cpu().bool()))
        return Prompt.cat(rows)

    def _as_seen(self, photo: Tensor) -> Image.Image:
        """A photo `[3, height, width]` in [0, 1] at the size at which the text encoder sees it."""
        from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions

        image = Image.fromarray(to_photos(photo[None])[0])
        area = self.settings.condition_resolution**2
        width, height = calculate_dimensions(area, image.width / image.height)[:2]
        return self.text_pipeline.image_processor.resize(image, height, width)

    def shapes(self, size: tuple[int, int]) -> Shapes:
        config, (rows, columns) = self.network.config, (side // 8 for side in size)
        photo = round(self.settings.condition_resolution / 28) ** 2  # one token for 28 x 28 pixels
        latents = config.in_channels // 4, rows, columns
        return Shapes(latents, (photo + TEXT_TOKENS, config.joint_attention_dim))

    def prepare(self, condition: Condition) -> QwenCondition:
        prompt, images = condition.prompt, (condition.source, *condition.references)
        # Photos of other shapes may have longer prompts: what is padding in all rows costs time and a mask.
        prompt = prompt.trim()
        return QwenCondition(
            self._enter(prompt.tokens),
            None if prompt.mask.all() else prompt.mask.to(self.device),
            self._enter(torch.cat([pack(image) for image in images], dim=1)),
            [patch_grid(image) for image in images],
        )

    def velocity(self, x_sigma: Tensor, sigma: Tensor, prepared: QwenCondition) -> Tensor:
        noisy = self._enter(pack(x_sigma))
        out = self.network(
            hidden_states=torch.cat([noisy, prepared.images], dim=1),
            timestep=sigma.to(self.device),
            encoder_hidden_states=prepared.tokens,
            encoder_hidden_states_mask=prepared.mask,
            img_shapes=[[patch_grid(x_sigma), *prepared.grids]] * len(x_sigma),
            return_dict=False,
        )[0]
        return unpack(out[:, : noisy.shape[1]], x_sigma)

    def guide(self, cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
        tokens = pack(guided(cond, uncond, guidance_scale))
        length = torch.linalg.vector_norm(pack(cond), dim=-1, keepdim=True)
        return unpack(F.normalize(tokens, dim=-1) * length, cond)


class QwenImageEdit(QwenImageEditPlus):
    """The first Qwen-Image-Edit, of August 2025: one photo, which the text encoder sees at full size."""

    def encode_prompt(self, prompts: Sequence[str], photos: Sequence[Tensor] = ()) -> Prompt:
        # Its template holds a photo: texts alone are read beside a blank one.
        return super().encode_prompt(prompts, photos or [torch.ones(len(prompts), 3, 64, 64)])

    def prepare(self, condition: Condition) -> QwenCondition:
        if condition.references:
            raise ValueError("the first Qwen-Image-Edit reads one photo; 2509 and 2511 read several")
        return super().prepare(condition)


def make_graph(student: Student, file: str, encode: str, **photo: Any) -> Graph:
    """ComfyUI's nodes over the base's `file`; `encode` is the node that reads prompt and photo together."""
    encoder = "qwen_2.5_vl_7b_fp8_scaled.safetensors"
    return {
        **frame(student, file, "qwen_image_vae.safetensors", SIDE_MULTIPLE),
        "shifted": node("ModelSamplingAuraFlow", model=["lora", 0], shift=student.shift),
        "clip": node("CLIPLoader", clip_name=encoder, type="qwen_image"),
        "text": node(encode, clip=["clip", 0], **photo, prompt=student.prompt),
        "positive": show_photo(),
    }


def make_workflow(student: Student) -> Graph:
    """ComfyUI's nodes for the first Qwen-Image-Edit."""
    file = "qwen_image_edit_bf16.safetensors"
    return make_graph(student, file, "TextEncodeQwenImageEdit", image=["scaled", 0])


def reads_clean_photos(base: str) -> bool:
    """Whether a base has the rule of 2511; the name tells where its configuration is not on this machine."""
    config = Path(base) / "transformer" / "config.json"
    if not config.is_file():
        return "2511" in base
    with opening(base):
        return bool(json.loads(config.read_text(encoding="utf-8")).get(CLEAN_PHOTOS))


def make_plus_workflow(student: Student) -> Graph:
    """ComfyUI's nodes for Qwen-Image-Edit-2509 and 2511, each with its own file.

    For 2511 ComfyUI has a mark in its own file of the base, but none in conversions by others: the node says
    it for all of them.
    """
    clean = reads_clean_photos(student.base)
    file = f"qwen_image_edit_{2511 if clean else 2509}_bf16.safetensors"
    graph = make_graph(student, file, "TextEncodeQwenImageEditPlus", image1=["scaled", 0])
    if not clean:
        return graph
    marked = node(
        "FluxKontextMultiReferenceLatentMethod",
        conditioning=["reference", 0],
        reference_latents_method="index_timestep_zero",
    )
    return {**graph, "reference": graph["positive"], "positive": marked}


# Both pipelines scale photos to a million pixels for the network. In the first one the text encoder sees them
# so too, unless it was asked before.
SETUP_PLUS = """\
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as pipeline

sizes, scale = {image.width / image.height: image.size for image in images}, pipeline.calculate_dimensions
pipeline.CONDITION_IMAGE_SIZE, pipeline.VAE_IMAGE_SIZE = $seen**2, 0
pipeline.calculate_dimensions = lambda area, aspect: scale(area, aspect) if area else sizes[aspect]"""
SETUP_FIRST = """\
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as pipeline

seen_width, seen_height, _ = pipeline.calculate_dimensions($seen**2, width / height)
seen = pipe.image_processor.resize(images[0], seen_height, seen_width)
with torch.no_grad():
    prompt, mask = pipe.encode_prompt(PROMPTS[effect], seen)
pipeline.calculate_dimensions = lambda *_: (width, height, None)"""
CARD = {"targets": {"steps": 40, "guidance_scale": 4.0}}  # what the model's card samples with
QWEN_IMAGE_EDIT_PLUS = DiffusersFamily(
    name="QwenImageEditPlusPipeline",
    backbone=QwenImageEditPlus,
    network_class="QwenImageTransformer2DModel",
    vae_class="AutoencoderKLQwenImage",
    lora_roots=("",),
    name_part="qwen-image-edit-25",
    side_multiple=SIDE_MULTIPLE,
    known={"Qwen/Qwen-Image-Edit-2509": KNOWN, "Qwen/Qwen-Image-Edit-2511": KNOWN_2511},
    reads_references=True,
    speech=QWEN_25_VL,
    recommended={**LARGE, **CARD},
    export=ExportFacts(
        architecture="qwen-image-edit-plus",
        license="apache-2.0",
        arguments="true_cfg_scale=1.0",
        setup=SETUP_PLUS,
        comfyui_prefix="diffusion_model.",
        workflow=make_plus_workflow,
    ),
)
QWEN_IMAGE_EDIT = DiffusersFamily(
    name="QwenImageEditPipeline",
    backbone=QwenImageEdit,
    network_class="QwenImageTransformer2DModel",
    vae_class="AutoencoderKLQwenImage",
    lora_roots=("",),
    name_part="qwen-image-edit",
    side_multiple=SIDE_MULTIPLE,
    known={"Qwen/Qwen-Image-Edit": KNOWN},
    speech=QWEN_25_VL,
    recommended={**LARGE, **CARD, "model": {**LARGE["model"], "condition_resolution": 1024}},
    export=ExportFacts(
        architecture="qwen-image-edit",
        license="apache-2.0",
        arguments="true_cfg_scale=1.0",
        prompt_arguments="prompt_embeds=prompt, prompt_embeds_mask=mask",
        setup=SETUP_FIRST,
        comfyui_prefix="diffusion_model.",
        workflow=make_workflow,
    ),
)
