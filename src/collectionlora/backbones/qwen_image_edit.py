"""Qwen-Image-Edit: 2509 and 2511 (`EditPlus`, several reference images), and the first one, of one photo.

The text encoder sees the photos beside the text, so an encoded prompt belongs to its photos. Guidance keeps
the length that each token of the conditional velocity has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from PIL import Image
from torch import Tensor

from collectionlora.backbones.base import Condition, Prompt, Shapes
from collectionlora.backbones.diffusers_model import LARGE, DiffusersBackbone, pack, unpack
from collectionlora.objectives import guided
from collectionlora.pictures.photos import to_photos

TEXT_TOKENS = 64  # of an instruction, for a plan
UNCONDITIONAL = " "  # the negative prompt that the model card gives


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


class QwenImageEditPlus(DiffusersBackbone):
    """Qwen-Image-Edit-2509 and 2511."""

    pipeline_class = QwenImageEditPlusPipeline
    network_class = QwenImageTransformer2DModel
    vae_class = AutoencoderKLQwenImage
    lora_roots = ("transformer_blocks.",)
    prompts_see_photos = True
    reads_references = True

    @classmethod
    def recommended_settings(cls, pipeline_config: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return LARGE  # the defaults are this model's recipe

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
        image = Image.fromarray(to_photos(photo[None])[0])
        area = self.settings.condition_resolution**2
        width, height = calculate_dimensions(area, image.width / image.height)[:2]
        return self.text_pipeline.image_processor.resize(image, height, width)

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

    def shapes(self, resolution: int) -> Shapes:
        config, side = self.network.config, resolution // 8
        photo = round(self.settings.condition_resolution / 28) ** 2  # one token for 28 x 28 pixels
        latents = config.in_channels // 4, side, side
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

    pipeline_class = QwenImageEditPipeline
    reads_references = False

    @classmethod
    def recommended_settings(cls, pipeline_config: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {**LARGE, "model": {**LARGE["model"], "condition_resolution": 1024}}

    def encode_prompt(self, prompts: Sequence[str], photos: Sequence[Tensor] = ()) -> Prompt:
        # Its template holds a photo: texts alone are read beside a blank one.
        return super().encode_prompt(prompts, photos or [torch.ones(len(prompts), 3, 64, 64)])

    def prepare(self, condition: Condition) -> QwenCondition:
        if condition.references:
            raise ValueError("the first Qwen-Image-Edit reads one photo; 2509 and 2511 read several")
        return super().prepare(condition)
