"""FLUX.1 Kontext: one photo, T5 tokens beside one CLIP vector, distilled guidance as an input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxKontextPipeline, FluxTransformer2DModel
from torch import Tensor

from collectionlora.backbones.base import Condition, Prompt, Shapes
from collectionlora.backbones.diffusers_model import LARGE, DiffusersBackbone, pack, unpack


@dataclass(frozen=True)
class KontextCondition:
    """Prompt, packed photo `[B, N, 4 * C]` and the positions `[N, 3]` of its patches."""

    tokens: Tensor
    pooled: Tensor
    photo: Tensor
    positions: Tensor


def positions(latents: Tensor, image: int) -> Tensor:
    """(image, row, column) of every patch of latents `[B, C, H, W]`, `[N, 3]`; image 0 is the noisy one."""
    rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
    return torch.cartesian_prod(torch.tensor([image]), torch.arange(rows), torch.arange(columns)).float()


class FluxKontext(DiffusersBackbone):
    """FLUX.1 Kontext [dev]."""

    pipeline_class = FluxKontextPipeline
    network_class = FluxTransformer2DModel
    vae_class = AutoencoderKL
    # All 504 linear layers: LoRAs for FLUX in the wild train any of them.
    lora_roots = ("",)

    @classmethod
    def recommended_settings(cls, pipeline_config: dict[str, Any]) -> dict[str, dict[str, Any]]:
        model = {**LARGE["model"], "embedded_guidance": 2.5}
        return {**LARGE, "model": model, "targets": {"steps": 28, "guidance_scale": 1}}

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], photos: Sequence[Tensor] = ()) -> Prompt:
        return Prompt.cat([self._encode_text(text) for text in prompts])

    def _encode_text(self, text: str) -> Prompt:
        tokens, pooled, _ = self.text_pipeline.encode_prompt(text)
        # The network was trained with T5's padding in sight: every token counts.
        return Prompt(tokens.cpu(), torch.ones(tokens.shape[:2], dtype=torch.bool), pooled.cpu())

    def _encode(self, image: Tensor) -> Tensor:
        config = self.vae.config
        return (self.vae.encode(image).latent_dist.mode() - config.shift_factor) * config.scaling_factor

    def _decode(self, latent: Tensor) -> Tensor:
        config = self.vae.config
        return self.vae.decode(latent / config.scaling_factor + config.shift_factor).sample

    def shapes(self, resolution: int) -> Shapes:
        config, side = self.network.config, resolution // 8
        latents = config.in_channels // 4, side, side
        return Shapes(latents, (512, config.joint_attention_dim), config.pooled_projection_dim)

    def prepare(self, condition: Condition) -> KontextCondition:
        if condition.references:
            raise ValueError("FLUX.1 Kontext reads one photo; FLUX.2 and Qwen-Image-Edit-2509 read several")
        assert condition.prompt.pooled is not None
        return KontextCondition(
            self._enter(condition.prompt.tokens),
            self._enter(condition.prompt.pooled),
            self._enter(pack(condition.source)),
            positions(condition.source, image=1).to(self.device),
        )

    def velocity(self, x_sigma: Tensor, sigma: Tensor, prepared: KontextCondition) -> Tensor:
        noisy = self._enter(pack(x_sigma))
        own = positions(x_sigma, image=0).to(self.device)
        out = self.network(
            hidden_states=torch.cat([noisy, prepared.photo], dim=1),
            timestep=sigma.to(self.device),
            guidance=self._guidance(len(x_sigma)),
            pooled_projections=prepared.pooled,
            encoder_hidden_states=prepared.tokens,
            txt_ids=own.new_zeros(prepared.tokens.shape[1], 3),
            img_ids=torch.cat([own, prepared.positions]),
            return_dict=False,
        )[0]
        return unpack(out[:, : noisy.shape[1]], x_sigma)
